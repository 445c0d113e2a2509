// What is shown: elements, figures, bars, and the chart of margins by epsilon.
const SHOWN = 5; // probabilities
const SVG = "http://www.w3.org/2000/svg";
const $ = id => document.getElementById(id);

function make(tag, facts = {}, ...children) {
  const element = Object.assign(document.createElement(tag), facts);
  element.append(...children);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const short = x => (Math.abs(x) < 0.01 && x !== 0 ? x.toExponential(1) : x.toFixed(2));
const radius = x => String(Number(x.toPrecision(3)));

// Return the classes from the most likely one on, with probabilities, and the margin between the first two.
function ranked(logits) {
  const order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b);
  const shares = logits.map(x => Math.exp(x - logits[order[0]])), sum = shares.reduce((a, b) => a + b, 0);
  return {
    order, probabilities: shares.map(s => s / sum), decision: order[0],
    margin: logits[order[0]] - logits[order[1] ?? order[0]],
  };
}

// Return the margin of a label: below 0 another class has a larger logit.
const marginOf = (logits, label) => logits[label] - Math.max(...logits.filter((_, i) => i !== label));

function showDecision(labels, logits) {
  const { order, probabilities, decision, margin } = ranked(logits);
  $("decision").textContent = labels[decision];
  $("margin").textContent = short(margin);
  $("bars").replaceChildren(...order.slice(0, SHOWN).map(i => {
    const fill = make("i");
    fill.style.width = `${100 * probabilities[i]}%`;
    return make("li", {}, make("span", { className: "label", textContent: labels[i] }),
      make("span", { className: "bar" }, fill),
      make("span", { className: "share", textContent: `${(100 * probabilities[i]).toFixed(1)}%` }));
  }));
  $("answer").dataset.logits = JSON.stringify(logits); // in full, which no line has room for
  $("answer").hidden = false;
}

// Draw a bar for each radius: up where the label's margin is positive, down where the attack has succeeded.
function showChart(margins, now, trained) {
  const count = margins.length, [width, height] = [40 * count, 110];
  const known = margins.filter(m => m !== undefined), most = Math.max(1e-9, ...known), least = Math.min(0, ...known);
  const y = m => 6 + (height - 12) * (most - m) / (most - least || 1);
  const chart = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (trained >= 0) {
    chart.append(draw("line", { x1: 40 * trained + 20, x2: 40 * trained + 20, y1: 0, y2: height, class: "trained" }));
  }
  margins.forEach((margin, i) => {
    if (margin === undefined) return;
    const kind = (margin > 0 ? "holds" : "breaks") + (i === now ? " now" : "");
    const top = Math.min(y(margin), y(0)), tall = Math.max(2, Math.abs(y(margin) - y(0)));
    chart.append(draw("rect", { x: 40 * i + 9, y: top, width: 22, height: tall, rx: 3, class: kind }));
  });
  chart.append(draw("line", { x1: 0, x2: width, y1: y(0), y2: y(0), class: "zero" }));
  $("chart").replaceChildren(chart);
}

function showPictures(bytes, pixels, plane) {
  const clean = toPixels(bytes), change = pixels.map((p, i) => p - clean[i]);
  const largest = change.reduce((most, c) => Math.max(most, Math.abs(c)), 0), factor = largest ? 0.5 / largest : 0;
  paint($("before"), clean, plane);
  paint($("change"), change.map(c => 0.5 + factor * c), plane);
  paint($("after"), pixels, plane);
  $("factor").textContent = largest ? `the change, ${factor.toFixed(factor < 10 ? 1 : 0)} times` : "no change";
}

function showAttack(labels, label, logits, eps, budget) {
  const holds = logits && ranked(logits).decision === label;
  $("verdict").textContent = logits ? (holds ? "HOLDS" : "BROKEN") : "";
  $("verdict").className = holds ? "holds" : "breaks";
  const times = eps === budget ? "the budget" : `${radius(eps / budget)} times the budget`;
  const where = eps ? `At eps ${radius(eps)}, ${times}, ` : "As it is, ";
  const found = logits && labels[ranked(logits).decision];
  $("sentence").textContent = !logits ? `${where}not asked yet.`
    : holds ? `${where}the model reads ${found}, which is right${eps ? ": the attack fails" : ""}.`
    : `${where}the model reads ${found} instead of ${labels[label]}${eps ? ": the attack succeeds" : ""}.`;
}

function showError(error) {
  $("error").textContent = error ? `${error.message || error}` : "";
  $("error").hidden = !error;
}
