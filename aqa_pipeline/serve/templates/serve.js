// The page of `aqa serve`: hands files over one by one, asks how far they are, shows results.
"use strict";

const form = document.getElementById("drop");
const input = document.getElementById("file");
const jobs = document.getElementById("jobs");
const STAGES = {
  queued: [0.02, "waiting"],
  decoding: [0.2, "reading the video"],
  network: [0.5, "looking at it"],
  explaining: [0.8, "finding the reasons"],
};

function card(name) {
  const item = document.getElementById("job").content.firstElementChild.cloneNode(true);
  item.querySelector(".name").textContent = name;
  jobs.prepend(item);
  return item;
}

function say(item, text, part) {
  item.querySelector("[role=status]").textContent = text;
  const bar = item.querySelector("progress");
  if (part === null) bar.hidden = true;
  else bar.value = part;
}

function fail(item, text) {
  say(item, text, null);
  item.classList.add("failed");
}

function query(file) {
  const asked = new URLSearchParams({ name: file.name });
  form.querySelectorAll("[data-option]").forEach((field) => {
    if (field.value.trim()) asked.set(field.name, field.value.trim());
  });
  return asked;
}

function upload(file) {
  const item = card(file.name);
  const request = new XMLHttpRequest();
  let id = null;
  let forgotten = false;
  item.querySelector("[data-forget]").addEventListener("click", () => {
    forgotten = true;
    request.abort();
    if (id) fetch(`clips/${id}`, { method: "DELETE" }).catch(() => {});
    item.remove();
    input.focus();
  });
  if (file.size > Number(form.dataset.maxBytes)) {
    const limit = Math.round(Number(form.dataset.maxBytes) / 1e6);
    fail(item, `${Math.ceil(file.size / 1e6)} MB; at most ${limit} MB are taken`);
    return;
  }
  request.open("POST", `clips?${query(file)}`);
  request.responseType = "json";
  request.upload.addEventListener("progress", (event) => {
    const part = event.lengthComputable ? event.loaded / event.total : 0;
    say(item, `sending, ${Math.round(100 * part)} %`, 0.02 + 0.1 * part);
  });
  request.addEventListener("error", () => fail(item, "the server did not take it, or is gone"));
  request.addEventListener("load", () => {
    const answer = request.response || {};
    if (request.status !== 202) {
      fail(item, answer.error || `refused (${request.status})`);
      return;
    }
    id = answer.id;
    follow(item, id, () => forgotten);
  });
  say(item, "sending", 0.02);
  request.send(file);
}

async function follow(item, id, isForgotten) {
  while (!isForgotten()) {
    let answer;
    try {
      const reply = await fetch(`clips/${id}`);
      answer = await reply.json();
      if (!reply.ok) throw new Error(answer.error);
    } catch (error) {
      if (!isForgotten()) fail(item, (error && error.message) || "the server is gone");
      return;
    }
    if (answer.state === "failed") {
      fail(item, answer.error);
      return;
    }
    if (answer.state === "done") {
      await show(item, id);
      return;
    }
    const [part, text] = STAGES[answer.state] || [0.5, answer.state];
    const before = answer.position > 0 ? `, ${answer.position} before it` : "";
    say(item, text + (answer.state === "queued" ? before : ""), part);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

async function show(item, id) {
  const reply = await fetch(`clips/${id}/result`);
  if (!reply.ok) {
    fail(item, "its result is no longer kept: hand it over again");
    return;
  }
  const result = item.querySelector(".result");
  result.innerHTML = await reply.text();
  say(item, "done", null);
  item.classList.add("done");
  result.querySelectorAll("[data-players]").forEach(startPlayers);
  const save = item.querySelector("[data-save]");
  save.href = `clips/${id}/page`;
  save.hidden = false;
}

function take(files) {
  [...files].forEach(upload);
}

input.addEventListener("change", () => {
  take(input.files);
  input.value = "";
});
["dragenter", "dragover"].forEach((kind) =>
  form.addEventListener(kind, (event) => {
    event.preventDefault();
    form.classList.add("over");
  }),
);
["dragleave", "drop"].forEach((kind) =>
  form.addEventListener(kind, (event) => {
    event.preventDefault();
    form.classList.remove("over");
  }),
);
form.addEventListener("drop", (event) => take(event.dataTransfer.files));
form.addEventListener("submit", (event) => event.preventDefault());

const report = document.getElementById("report");
if (report) {
  report.addEventListener("toggle", () => {
    const frame = report.querySelector("iframe");
    if (report.open && !frame.src) frame.src = "report";
  });
}
