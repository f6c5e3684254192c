const overlay = document.getElementById("overlay");
const heatmap = document.getElementById("heatmap");
const opacity = document.getElementById("opacity");
const shown = document.getElementById("opacity-value");
const refreshed = document.getElementById("refreshed");

function paint() {
  overlay.style.opacity = heatmap.checked ? opacity.value / 100 : 0;
  opacity.disabled = !heatmap.checked;
  shown.value = `${opacity.value} %`;
}

async function refresh(seconds) {
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (response.redirected || !response.ok) {
    location.replace(response.url);
    return;
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const next = page.getElementById("refreshed");
  if (next === null) {
    location.reload();
    return;
  }
  if (next.textContent !== refreshed.textContent) {
    refreshed.replaceChildren(...next.childNodes);
  }
}

async function refreshUntilDone(seconds) {
  for (;;) {
    try {
      await refresh(seconds);
    } catch {
      seconds = Math.min(seconds * 2, 30);
    }
  }
}

if (overlay) {
  heatmap.addEventListener("change", paint);
  opacity.addEventListener("input", paint);
  paint();
}
if (refreshed) {
  refreshUntilDone(Number(refreshed.dataset.refreshSeconds));
}
