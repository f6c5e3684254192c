const POLL_MS = 1500;
const POLL_LIMIT_MS = 180000;

const cards = document.getElementById("cards");
const reports = document.getElementById("reports");
const order = document.getElementById("order");
const orderCards = document.getElementById("order-cards");

const shown = new Map();

async function fill(target, request) {
  try {
    const response = await fetch(request);
    const text = await response.text();
    if (text === shown.get(target)) return; // nothing new to read aloud
    shown.set(target, text);
    target.innerHTML = text;
  } catch {
    shown.delete(target);
    target.textContent = "The EHR did not answer. Reload the page.";
  }
}

function inProgress(target) {
  return target.querySelector('[data-in-progress="true"]') !== null;
}

async function follow(target, ask) {
  const end = Date.now() + POLL_LIMIT_MS;
  await fill(target, ask());
  while (inProgress(target) && Date.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    await fill(target, ask());
  }
}

function askPatientView() {
  return follow(cards, () => cards.dataset.source);
}

document.getElementById("ask-again").addEventListener("click", askPatientView);

order.addEventListener("submit", (event) => {
  event.preventDefault();
  shown.delete(orderCards);
  orderCards.textContent = "Asking Rayhook before signing…";
  const body = new URLSearchParams(new FormData(order));
  follow(orderCards, () => new Request(order.action, { method: "POST", body }));
});

/** A report is written back after its card is there. */
async function followReports() {
  const end = Date.now() + POLL_LIMIT_MS;
  while (Date.now() < end) {
    await fill(reports, reports.dataset.source);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

followReports();
askPatientView();
