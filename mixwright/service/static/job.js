"use strict";
// A job that has not ended: its events move the page, and its log is read again at each of them.
const job = document.getElementById("job");
const field = (name) => job.querySelector(`[data-field="${name}"]`);

function seconds(n) {
  if (n < 60) return `${Math.round(n)} s`;
  if (n < 3600) return `${Math.floor(n / 60)} min ${Math.round(n % 60)} s`;
  return `${Math.floor(n / 3600)} h ${Math.round((n % 3600) / 60)} min`;
}
const count = (n) => n.toLocaleString("en-US");
const rate = (n) => (n >= 100 ? count(Math.round(n)) : String(Number(n.toPrecision(3))));

function showProgress(progress) {
  const bar = field("bar");
  bar.hidden = !progress;
  if (!progress) return;
  if (progress.total) {
    bar.max = progress.total;
    bar.value = progress.done;
  } else {
    bar.removeAttribute("value");
  }
  field("stage").textContent = progress.stage;
  field("done").textContent = count(progress.done) + (progress.total ? ` of ${count(progress.total)}` : "") + ` ${progress.unit}`;
  field("rate").textContent = `${rate(progress.rate)} ${progress.unit} a second`;
  field("eta").textContent = progress.eta_seconds === null ? "–" : seconds(progress.eta_seconds);
}

async function showLog() {
  const log = field("log");
  const answer = await fetch(`/v1/jobs/${job.dataset.id}/logs?tail=200`, { credentials: "same-origin" });
  if (!answer.ok) return;
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const text = await answer.text();
  if (text === log.textContent) return;
  log.textContent = text;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function show(state) {
  const shown = field("state");
  if (shown.textContent !== state.state) {
    shown.textContent = state.state;
    shown.className = `state ${state.state}`;
    document.title = `${state.state}: ${state.kind} · mixwright`;
  }
  showProgress(state.state === "running" ? state.progress : null);
  field("cancelling").hidden = !state.cancel_requested;
  field("cancel").disabled = state.cancel_requested;
}

if (job && job.dataset.live === "yes") {
  field("cancel").hidden = false;
  field("cancel").addEventListener("click", async () => {
    field("cancel").disabled = true;
    const answer = await fetch(`/v1/jobs/${job.dataset.id}/cancel`, { method: "POST", credentials: "same-origin" });
    const said = await answer.json();
    if (answer.ok) show(said);
    else {
      field("refused").textContent = said.detail;
      field("cancel").disabled = false;
    }
  });
  const events = new EventSource(`/v1/jobs/${job.dataset.id}/events`);
  events.addEventListener("job", (event) => {
    const state = JSON.parse(event.data);
    show(state);
    showLog().catch(() => {});
    if (["succeeded", "failed", "cancelled"].includes(state.state)) {
      events.close();
      // The page of a job that has ended has its result, or what went wrong.
      swap("job", location.href).catch(() => location.reload());
    }
  });
}
