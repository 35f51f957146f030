// Tries calls from their forms. Without it the page is complete but for that.
"use strict";

const LONGEST_SHOWN = 200_000; // characters of an answer

// ---- who is asking: kept for this tab only

const credentials = document.querySelector(".credentials");
const fields = Object.fromEntries(
  [...credentials.querySelectorAll("[data-credential]")].map((field) => [field.dataset.credential, field]),
);

for (const [name, field] of Object.entries(fields)) {
  field.value = sessionStorage.getItem(name) ?? "";
  field.addEventListener("input", () => sessionStorage.setItem(name, field.value));
}
credentials.addEventListener("reset", () => sessionStorage.clear());
credentials.addEventListener("submit", (event) => event.preventDefault());

function remember(name, value) {
  fields[name].value = value;
  sessionStorage.setItem(name, value);
}

// One credential at most: the service refuses two.
function credentialHeaders(security) {
  const ways = security.split(" ");
  if (ways.includes("bearer") && fields.token.value) {
    return { Authorization: `Bearer ${fields.token.value.trim()}` };
  }
  if (ways.includes("apiKey") && fields.key.value) {
    const session = fields.session.value.trim();
    return { "X-API-Key": fields.key.value.trim(), ...(session && { "X-Session-ID": session }) };
  }
  return {};
}

// ---- from a form to a request

function requestOf(form) {
  const headers = credentialHeaders(form.dataset.security);
  const query = new URLSearchParams();
  let path = form.dataset.path;
  for (const field of form.querySelectorAll("[data-in]")) {
    const { name, value, dataset } = field;
    if (dataset.in === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (value === "") continue;
    else if (dataset.in === "query") query.set(name, value);
    else headers[name] = value;
  }
  const accept = form.querySelector("[data-choice=accept]");
  if (accept) headers.Accept = accept.value;
  const search = query.size ? `?${query}` : "";
  return { url: path + search, options: { method: form.dataset.method, headers, ...bodyOf(form, headers) } };
}

function bodyOf(form, headers) {
  const chosen = form.querySelector("[data-media]:not([hidden])");
  if (!chosen) return {};
  const media = chosen.dataset.media;
  if (media !== "multipart/form-data") {
    const { value } = chosen.querySelector("textarea");
    if (value.trim() === "") return {};
    headers["Content-Type"] = media;
    return { body: value };
  }
  const body = new FormData(); // the browser writes the Content-Type, which names the boundary
  for (const field of chosen.querySelectorAll("[name]")) {
    if (field.type !== "file") body.append(field.name, field.value);
    else if (field.files.length) body.append(field.name, field.files[0]);
  }
  return { body };
}

// ---- from a response to what is shown

function node(kind, text, attributes = {}) {
  const made = Object.assign(document.createElement(kind), attributes);
  made.textContent = text;
  return made;
}

function isText(media) {
  return /^text\/|json|^message\//.test(media);
}

function readable(text, media) {
  if (!/json$/.test(media)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // cut short
  }
}

// Shown as it comes, so that events are seen when they happen.
async function showText(response, media, shown) {
  const decoder = new TextDecoder();
  const reader = response.body?.getReader();
  let text = "";
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
    shown.textContent = text;
    if (text.length <= LONGEST_SHOWN) continue;
    text = `${text.slice(0, LONGEST_SHOWN)}\n… and more`;
    await reader.cancel();
  }
  shown.textContent = readable(text, media) || "(no body)";
  return text;
}

async function showFile(response, shown) {
  const file = await response.blob();
  const link = node("a", `Save ${file.size} octets`, { href: URL.createObjectURL(file), download: "answer" });
  shown.replaceWith(link);
}

function learn(text) {
  try {
    const { token, session_id: session } = JSON.parse(text);
    if (token) remember("token", token);
    if (session) remember("session", session);
  } catch {
    // no JSON, and so no token
  }
}

async function send(form, answer, signal) {
  const { url, options } = requestOf(form);
  const begun = performance.now();
  const response = await fetch(url, { ...options, signal });
  const milliseconds = Math.round(performance.now() - begun);
  const media = (response.headers.get("content-type") ?? "").split(";")[0];
  const status = node("strong", `${response.status} ${response.statusText}`, { className: response.ok ? "good" : "bad" });
  const line = node("p", ` in ${milliseconds} ms: ${options.method} ${url}`);
  line.prepend(status);
  const headers = node("details", "");
  headers.append(
    node("summary", "Header"),
    node("pre", [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n")),
  );
  const shown = node("pre", "", { tabIndex: 0 });
  answer.replaceChildren(line, headers, shown);
  if (media && !isText(media)) await showFile(response, shown);
  else {
    const text = await showText(response, media, shown);
    if (response.ok && /json$/.test(media)) learn(text);
  }
}

// ---- forms

function prepare(form) {
  const answer = form.querySelector(".answer");
  const stop = form.querySelector(".stop");
  let running = null;

  form.querySelector("[data-choice=media]")?.addEventListener("change", (event) => {
    for (const each of form.querySelectorAll("[data-media]")) each.hidden = each.dataset.media !== event.target.value;
  });
  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    const own = (running = new AbortController());
    answer.hidden = stop.hidden = false;
    answer.replaceChildren(node("p", "Sent, waiting for the answer."));
    try {
      await send(form, answer, own.signal);
    } catch (error) {
      answer.append(node("p", error.name === "AbortError" ? "Stopped." : `No answer: ${error.message}.`, { className: "bad" }));
    } finally {
      if (running === own) stop.hidden = true;
    }
  });
  form.hidden = false;
}

for (const form of document.querySelectorAll(".try")) prepare(form);
credentials.hidden = false;

// ---- a link to a folded part unfolds it

function unfold() {
  const goal = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!(goal instanceof HTMLDetailsElement)) return;
  goal.open = true;
  goal.scrollIntoView();
}

addEventListener("hashchange", unfold);
unfold();
