// The page of `calmctl serve`. Names, sentences and paths are other people's text: they enter by textContent alone.
"use strict";
const $ = (id) => document.getElementById(id);
const make = (tag, values = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
};
const seconds = (s) => {
  if (s < 60) return `${s.toFixed(1)} s`;
  const [h, m, rest] = [Math.floor(s / 3600), Math.floor(s / 60) % 60, Math.floor(s % 60)];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(rest)}` : `${m}:${two(rest)}`;
};
const span = (hit) => `${seconds(hit.start_s)} to ${hit.end_s === null ? "its end" : seconds(hit.end_s)}`;
const percent = (p) => `${p < 0.1 ? (100 * p).toFixed(1) : Math.round(100 * p)} %`;
const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

let about = { unit: "clip", clips: 0 };
let terms = []; // parts beside the sentence in the field: {text | clip, name, weight}
let asking = null;
let timer = 0;

const filters = () => [...new FormData($("filters"))].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value);

const ask = async () => {
  const text = $("q").value.trim();
  const only = filters();
  $("active").textContent = only.length ? ` (${counted(only.length, "condition")})` : "";
  const all = terms.map(({ text, clip, weight }) => ({ text, clip, weight }));
  if (text) all.unshift({ text, weight: 1 });
  history.replaceState(null, "", `#${new URLSearchParams([...(text ? [["q", text]] : []), ...only])}`);
  asking?.abort(); // the answer to half a sentence is of no interest any more
  if (!all.length) {
    $("hits").replaceChildren();
    $("says").textContent = "";
    return;
  }
  asking = new AbortController();
  try {
    const asked = new URLSearchParams([["terms", JSON.stringify(all)], ...only]);
    const answer = await fetch(`/api/search?${asked}`, { signal: asking.signal });
    const found = await answer.json();
    if (answer.ok) show(found);
    else {
      $("hits").replaceChildren();
      $("says").textContent = found.error;
    }
  } catch (fault) {
    if (fault.name !== "AbortError") $("says").textContent = "no answer: is `calmctl serve` still running?";
  }
};

const show = (found) => {
  const whole = counted(found.clips, about.unit);
  if (found.matches === null) $("says").textContent = `The best of ${whole}; whether they match is not measured for such a question.`;
  else if (found.matches) $("says").textContent = `${found.matches === found.hits.length ? `At least ${found.matches}` : found.matches} of ${whole} match.`;
  else $("says").textContent = `No ${about.unit} of ${found.clips.toLocaleString("en")} matches. The nearest, which are no answer:`;
  const shown = found.matches === 0 ? found.hits.slice(0, 6) : found.hits;
  $("hits").replaceChildren(...shown.map(card));
};

const card = (hit) => {
  const sure = hit.confidence;
  const play = make("button", { className: "play", type: "button" });
  play.setAttribute("aria-label", `Play ${hit.name}, ${span(hit)}`);
  if (hit.file === null) play.append(make("span", { className: "none", textContent: "its file is not at hand" }));
  else {
    const image = make("img", { src: `/api/clips/${hit.clip}/picture`, alt: "", loading: "lazy" });
    image.onerror = () => image.replaceWith(make("span", { className: "none", textContent: "no picture: it does not decode" }));
    play.append(image);
  }
  play.onclick = () => open(hit);
  const more = make("button", { className: "more", type: "button", textContent: "More like it" });
  more.setAttribute("aria-label", `More like it: ${hit.name}`);
  more.onclick = () => add({ clip: hit.clip, name: hit.name, weight: 1 });
  const why = make("p", { className: "why" });
  if (sure) {
    why.append(make("span", { className: sure.match ? "yes" : "", textContent: sure.match ? "matches" : "no match" }));
    why.append(`, ${percent(sure.chance)} of other sentences do as well here`);
  }
  const shared = (hit.shared ?? []).map((each) => `${each.anchor} ${percent(each.share)}`).join(", ");
  if (shared) why.append(sure ? "; " : "", `shared: ${shared}`);
  return make("li", { className: sure && !sure.match ? "card far" : "card" },
    play,
    make("p", { className: "name", textContent: hit.name }),
    make("div", { className: "facts-line" }, make("span", { textContent: span(hit) }), make("span", { className: "num", textContent: hit.score.toFixed(3) })),
    why, more);
};

const open = async (hit) => {
  const video = $("video");
  $("playing").textContent = hit.name;
  $("path").textContent = hit.file ?? "";
  $("line").replaceChildren();
  $("cannot").hidden = hit.file !== null;
  $("cannot").textContent = "Its file is not at hand: only its features are.";
  video.hidden = hit.file === null;
  if (hit.file !== null) {
    video.onerror = () => {
      $("cannot").textContent = "This browser does not play the file; a player does. Its path is below.";
      $("cannot").hidden = false;
    };
    video.src = `/media/${hit.clip}#t=${hit.start_s}`;
    video.play().catch(() => {}); // a browser may want a click first
  }
  $("player").showModal();
  const text = $("q").value.trim();
  if (about.unit === "clip" || !text) return;
  const answer = await fetch(`/api/clips/${hit.clip}/line?${new URLSearchParams({ q: text })}`);
  if (!answer.ok || !$("player").open) return;
  const { windows } = await answer.json();
  const scores = windows.map((each) => each.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  $("line").replaceChildren(...windows.map((each) => {
    const bar = make("i");
    bar.style.height = `${high > low ? 8 + (92 * (each.score - low)) / (high - low) : 50}%`;
    const button = make("button", { type: "button", title: `${span(each)}: ${each.score.toFixed(3)}` }, bar);
    button.setAttribute("aria-label", `${span(each)}, score ${each.score.toFixed(3)}`);
    if (each.clip === hit.clip) button.setAttribute("aria-current", "true");
    button.onclick = () => { video.currentTime = each.start_s; video.play().catch(() => {}); };
    return button;
  }));
};
$("player").addEventListener("close", () => { $("video").pause(); $("video").onerror = null; $("video").removeAttribute("src"); $("video").load(); });

const add = (term) => {
  if (terms.length < 7) terms.push(term);
  draw();
  ask();
};
const draw = () => $("terms").replaceChildren(...terms.map((term) => {
  const weight = make("input", { type: "number", min: -10, max: 10, step: 0.5, value: term.weight });
  weight.setAttribute("aria-label", `Weight of ${term.name}`);
  weight.onchange = () => { if (weight.validity.valid && weight.value) { term.weight = Number(weight.value); ask(); } };
  const gone = make("button", { type: "button", textContent: "✕" });
  gone.setAttribute("aria-label", `Remove ${term.name}`);
  gone.onclick = () => { terms = terms.filter((each) => each !== term); draw(); ask(); };
  const picture = term.clip === undefined ? [] : [make("img", { src: `/api/clips/${term.clip}/picture`, alt: "" })];
  return make("li", {}, ...picture, make("span", { textContent: term.name }), weight, gone);
}));
const keep = (weight) => {
  const text = $("q").value.trim();
  if (!text) return;
  $("q").value = "";
  $("q").focus();
  add({ text, name: text, weight });
};
$("plus").onclick = () => keep(1);
$("minus").onclick = () => keep(-1);
$("q").oninput = () => { clearTimeout(timer); timer = setTimeout(ask, 200); };
$("filters").oninput = () => { clearTimeout(timer); timer = setTimeout(ask, 200); };
$("filters").onreset = () => setTimeout(ask); // the fields are empty after this event
$("filters").onsubmit = (event) => { event.preventDefault(); ask(); };
$("ask").onsubmit = (event) => { event.preventDefault(); clearTimeout(timer); ask(); };

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if ($("player").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing) { event.preventDefault(); $("q").focus(); return; }
  const hits = [...document.querySelectorAll(".card .play")];
  const at = hits.indexOf(document.activeElement);
  const columns = getComputedStyle($("hits")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  if (at >= 0 && event.key in steps) {
    event.preventDefault();
    (hits[at + steps[event.key]] ?? (event.key === "ArrowUp" ? $("q") : hits[at])).focus();
  } else if (event.key === "ArrowDown" && event.target === $("q") && hits.length) {
    event.preventDefault();
    hits[0].focus();
  } else if (event.key === "m" && at >= 0) hits[at].closest(".card").querySelector(".more").click();
});

const fromAddress = () => {
  const told = new URLSearchParams(location.hash.slice(1));
  $("q").value = told.get("q") ?? $("q").value;
  for (const field of $("filters").querySelectorAll("input")) field.value = told.get(field.name) ?? "";
  if (filters().length) $("only").open = true;
  ask();
};
window.addEventListener("hashchange", fromAddress);
fetch("/api/about").then((answer) => answer.json()).then((told) => {
  about = told;
  const out = Object.keys(told.left_out).length;
  $("where").textContent = `calmctl search in ${told.collection}, ${counted(told.clips, told.unit)}${out ? `, ${out} left out` : ""}`;
  $("folders").replaceChildren(...told.folders.map((value) => make("option", { value })));
  for (const field of $("filters").querySelectorAll("input:not([name=below])")) field.closest("label").hidden = !told.files;
  $("by").textContent = `Answered by ${told.by}.`;
  $("rule").textContent = told.rule ? `${told.rule[0].toUpperCase()}${told.rule.slice(1)}; measured with ${told.measured_with}.` : "";
  fromAddress();
});
