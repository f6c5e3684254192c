// Brings what changes up to date while something is in progress; without it the page reloads itself.
const shown = document.getElementById("refreshed");
const told = document.getElementById("told");
const SLOWEST_SECONDS = 30;

function keyOf(element) {
  const row = element?.closest?.("[data-key]");
  return row ? [row.dataset.key, [...row.querySelectorAll("a, button")].indexOf(element)] : null;
}

function focusAgain(key) {
  const row = key && shown.querySelector(`[data-key="${CSS.escape(key[0])}"]`);
  (row?.querySelectorAll("a, button")[key[1]] ?? row?.querySelector("a, button"))?.focus();
}

async function refresh() {
  const response = await fetch(location.href, {
    headers: { Accept: "text/html", "X-Rayhook-Refresh": "1" },
    cache: "no-store",
  });
  if (response.redirected || response.status === 401 || response.status === 409) {
    location.replace(response.redirected ? response.url : location.href);
    return false;
  }
  if (!response.ok) {
    throw new Error("not answered");
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const next = page.getElementById("refreshed");
  if (next === null) {
    location.reload();
    return false;
  }
  if (next.textContent !== shown.textContent) {
    const key = keyOf(shown.contains(document.activeElement) ? document.activeElement : null);
    shown.replaceChildren(...next.childNodes);
    focusAgain(key);
    told.textContent = shown.dataset.told;
  }
  return next.dataset.refreshSeconds !== undefined;
}

async function refreshUntilDone() {
  const pause = Number(shown.dataset.refreshSeconds);
  let seconds = pause;
  for (let going = true; going; ) {
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    if (document.hidden) {
      continue;
    }
    try {
      going = await refresh();
      seconds = pause;
    } catch {
      seconds = Math.min(seconds * 2, SLOWEST_SECONDS);
    }
  }
}

if (shown?.dataset.refreshSeconds) {
  refreshUntilDone();
}
