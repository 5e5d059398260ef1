
// What a person fills in becomes one POST /rerank. What comes back is put in as text, never as markup.

const WAIT_SECONDS = 60;
const LONG_TEXT = 600; // characters; longer ones scroll and must be reachable with the keyboard
const SEPARATORS = { line: /\n/, blank: /\n[ \t]*\n/, dashes: /^-{3,}[ \t]*$/m };

const [form, query, documents, separator, long, topN, key, noStore, button] =
  ["form", "query", "documents", "separator", "long", "top-n", "key", "no-store", "rank"].map((id) => document.getElementById(id));
const [result, error, status, answer, warnings, ranking, facts] =
  ["result", "error", "status", "answer", "warnings", "ranking", "facts"].map((id) => document.getElementById(id));

/** What went wrong, in words for the person. */
class Failure extends Error {}

function readDocuments() {
  if (separator.value !== "json") {
    return documents.value.split(SEPARATORS[separator.value]).map((text) => text.trim()).filter(Boolean);
  }
  let list;
  try {
    list = JSON.parse(documents.value);
  } catch (problem) {
    throw new Failure(`The documents are not JSON: ${problem.message}`);
  }
  if (!Array.isArray(list)) throw new Failure('The documents are JSON, but no list: write ["…", "…"].');
  return list;
}

function readHeaders() {
  const headers = { "Content-Type": "application/json" };
  const given = key.value.trim();
  if (/[^\x21-\x7e]/.test(given)) throw new Failure("The API key holds characters that no key has: copy it again.");
  if (given) headers.Authorization = `Bearer ${given}`;
  if (noStore.checked) headers["Cache-Control"] = "no-store";
  return headers;
}

function readBody() {
  if (topN.validity.badInput) throw new Failure("How many to show is not a number: leave it empty to see all.");
  const body = { query: query.value, documents: readDocuments(), return_documents: true };
  if (topN.value !== "") body.top_n = Number(topN.value);
  if (long.value === "chunk") body.long_documents = "chunk";
  if (long.value === "refuse") body.truncation = false;
  return body;
}

/** Ask the server; the answer's headers and fields, or a Failure. */
async function ask(headers, body) {
  const wait = new AbortController();
  const timer = setTimeout(() => wait.abort(), WAIT_SECONDS * 1000);
  let response, text;
  try {
    response = await fetch("rerank", { method: "POST", headers, body: JSON.stringify(body), signal: wait.signal });
    text = await response.text();
  } catch {
    throw new Failure(wait.signal.aborted
      ? `The server did not answer within ${WAIT_SECONDS} seconds.`
      : "The server cannot be reached: it has stopped, or the connection to it is broken.");
  } finally {
    clearTimeout(timer);
  }
  const fields = parse(text);
  if (response.ok && fields?.results) return [response.headers, fields];
  const retry = response.headers.get("retry-after");
  const message = fields?.message ?? `that is no answer of this service. ${response.statusText}`;
  throw new Failure(`${response.status}: ${message}${retry ? ` (Try again in ${retry} s.)` : ""}`);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a proxy's page, say
  }
}

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...content); // strings become text nodes
  return made;
}

/** A document's text; the part that counted is marked. The server counts code points, JavaScript counts UTF-16. */
function textOf(item) {
  const text = item.document.text;
  const shown = element("div", "text");
  if (item.document_span) {
    const { start, end } = item.document_span;
    const points = Array.from(text);
    const part = (from, to) => points.slice(from, to).join("");
    shown.append(part(0, start), element("mark", "", part(start, end)), part(end));
  } else {
    shown.append(text);
  }
  if (text.length > LONG_TEXT) {
    shown.tabIndex = 0;
    shown.role = "group";
    shown.ariaLabel = `Text of the document with index ${item.index}`;
  }
  return shown;
}

function placeOf(item, share, wasCut) {
  const name = `index ${item.index}` + (item.id === undefined || item.id === null ? "" : ` · id ${item.id}`);
  const place = element("div", "place",
    element("span", "rank", `${item.rank}.`), element("span", "score", item.score.toFixed(4)), element("span", "name", name));
  if (item.document_span) place.append(element("span", "name", "marked: the part that counted"));
  if (wasCut) place.append(element("span", "cut", "cut: the model read only a part"));
  const filled = element("div", "");
  filled.style.width = `${100 * share}%`;
  const bar = element("div", "bar", filled);
  bar.ariaHidden = "true";
  return element("li", "", place, bar, textOf(item));
}

function fact(name, value, className = "") {
  return value === null ? [] : [element("div", className, element("dt", "", name), element("dd", "", value))];
}

function factsOf(headers, fields, roundTrip) {
  const told = (name, unit = "") => (headers.has(name) ? headers.get(name) + unit : null);
  const cut = fields.meta.truncated_documents;
  return [
    ...fact("In all", `${fields.took_ms} ms`),
    ...fact("Waiting", told("x-queue-time", " ms")),
    ...fact("Tokenising", told("x-tokenization-time", " ms")),
    ...fact("In the model", told("x-inference-time", " ms")),
    ...fact("In the browser", `${Math.round(roundTrip)} ms`),
    ...fact("From a cache", told("x-cache-hits")),
    ...fact("Computed now", told("x-cache-misses")),
    ...fact("Shared with others", told("x-cache-shared")),
    ...fact("Tokens", String(fields.usage.total_tokens)),
    ...fact("Cut documents", cut.length ? `index ${cut.join(", ")}` : "none"),
    ...fact("Model", fields.model, "wide"),
  ];
}

function show(asked, headers, fields, roundTrip) {
  const scores = fields.results.map((item) => item.score);
  // Most models score from 0 to 1; of others the bars tell the order and the distances alone.
  const low = Math.min(0, ...scores), high = Math.max(1, ...scores);
  const cut = new Set(fields.meta.truncated_documents);
  ranking.replaceChildren(...fields.results.map((item) => placeOf(item, (item.score - low) / (high - low), cut.has(item.index))));
  warnings.replaceChildren(...fields.meta.warnings.map((warning) => element("li", "", warning)));
  facts.replaceChildren(...factsOf(headers, fields, roundTrip));
  const count = asked.documents.length;
  const shown = fields.results.length;
  status.textContent = `${count} ${count === 1 ? "document" : "documents"} ranked for “${asked.query}” in ${fields.took_ms} ms, `
    + `${fields.meta.cached_documents} from a cache${shown < count ? `; the best ${shown} are shown` : ""}.`;
  answer.hidden = false;
  for (const mark of ranking.querySelectorAll("mark")) mark.parentElement.scrollTop = mark.offsetTop;
}

function setBusy(busy) {
  button.ariaDisabled = String(busy); // `disabled` would take the keyboard's focus away
  button.textContent = busy ? "Ranking …" : "Rank";
  result.ariaBusy = String(busy);
  answer.classList.toggle("old", busy);
}

async function rank(event) {
  event.preventDefault();
  if (button.ariaDisabled === "true") return;
  error.textContent = "";
  status.textContent = "Ranking …";
  setBusy(true);
  try {
    const asked = readBody();
    const start = performance.now();
    const [headers, fields] = await ask(readHeaders(), asked);
    show(asked, headers, fields, performance.now() - start);
  } catch (problem) {
    if (!(problem instanceof Failure)) console.error(problem);
    answer.hidden = true;
    status.textContent = "";
    error.textContent = problem instanceof Failure ? problem.message : "The page failed to show the answer; the console says why.";
  } finally {
    setBusy(false);
    result.scrollIntoView({ block: "nearest" });
  }
}

function count() {
  let told;
  try {
    const number = readDocuments().length;
    told = number === 1 ? "1 document" : `${number} documents`;
  } catch (problem) {
    told = problem.message;
  }
  document.getElementById("count").textContent = `${told}. Ctrl+Enter ranks them.`;
}

form.addEventListener("submit", rank);
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
documents.addEventListener("input", count);
separator.addEventListener("change", count);
count();
