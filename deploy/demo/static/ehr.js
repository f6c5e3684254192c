const POLL_MS = 1500;
const POLL_LIMIT_MS = 180000;

const cards = document.getElementById("cards");
const reports = document.getElementById("reports");
const order = document.getElementById("order");
const orderCards = document.getElementById("order-cards");

async function fill(target, request) {
  try {
    const response = await fetch(request);
    target.innerHTML = await response.text();
  } catch {
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
  await fill(reports, reports.dataset.source);
}

function askPatientView() {
  return follow(cards, () => cards.dataset.source);
}

document.getElementById("ask-again").addEventListener("click", askPatientView);

order.addEventListener("submit", (event) => {
  event.preventDefault();
  orderCards.textContent = "Asking Rayhook before signing…";
  const body = new URLSearchParams(new FormData(order));
  follow(orderCards, () => new Request(order.action, { method: "POST", body }));
});

fill(reports, reports.dataset.source);
askPatientView();
