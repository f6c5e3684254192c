// A window left open must not outlive its session: a launch for another patient in a second window ends it.
const mark = document.querySelector('meta[name="rayhook-window"]')?.content;

async function leaveIfEnded() {
  try {
    const response = await fetch(`/smart/window?w=${mark}`, { cache: "no-store" });
    if (response.status === 401 || response.status === 409) {
      document.body.hidden = true;
      location.replace(`/patient?w=${mark}`);
    }
  } catch {
    // Without a connection nothing can be sent either; the next return to the window asks again.
  }
}

if (mark) {
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      leaveIfEnded();
    }
  });
  addEventListener("focus", leaveIfEnded);
  addEventListener("pageshow", (event) => {
    if (event.persisted) {
      leaveIfEnded();
    }
  });
}
