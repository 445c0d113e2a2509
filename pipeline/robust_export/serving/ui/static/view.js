// Display: elements, numbers, probability bars, and the chart of margins by epsilon.
const TOP_CLASSES = 5;
const SVG = "http://www.w3.org/2000/svg";
const $ = id => document.getElementById(id);

function createElement(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function createSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const formatMargin = x => (Math.abs(x) < 0.01 && x !== 0 ? x.toExponential(1) : x.toFixed(2));
const formatEps = x => String(Number(x.toPrecision(3)));

// Return the classes by decreasing logit, their probabilities, and the margin of the first over the second.
function rank(logits) {
  const order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b);
  const exponentials = logits.map(x => Math.exp(x - logits[order[0]])), sum = exponentials.reduce((a, b) => a + b, 0);
  return {
    order, probabilities: exponentials.map(e => e / sum), decision: order[0],
    margin: logits[order[0]] - logits[order[1] ?? order[0]],
  };
}

// Return the label's logit minus the largest other logit; negative if the image is misclassified.
const marginOf = (logits, label) => logits[label] - Math.max(...logits.filter((_, i) => i !== label));

function showDecision(labels, logits) {
  const { order, probabilities, decision, margin } = rank(logits);
  $("decision").textContent = labels[decision];
  $("margin").textContent = formatMargin(margin);
  $("bars").replaceChildren(...order.slice(0, TOP_CLASSES).map(i => {
    const fill = createElement("i");
    fill.style.width = `${100 * probabilities[i]}%`;
    return createElement("li", {}, createElement("span", { className: "label", textContent: labels[i] }),
      createElement("span", { className: "bar" }, fill),
      createElement("span", { className: "percent", textContent: `${(100 * probabilities[i]).toFixed(1)}%` }));
  }));
  $("result").dataset.logits = JSON.stringify(logits); // all digits, for tests and scripts
  $("result").hidden = false;
}

// Draw one bar per radius: up where the label's margin is positive, down where the attack succeeds.
function showChart(margins, selected, threat) {
  const count = margins.length, [width, height] = [40 * count, 110];
  const known = margins.filter(m => m !== undefined), most = Math.max(1e-9, ...known), least = Math.min(0, ...known);
  const y = m => 6 + (height - 12) * (most - m) / (most - least || 1);
  const chart = createSvg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (threat >= 0) {
    chart.append(createSvg("line", { x1: 40 * threat + 20, x2: 40 * threat + 20, y1: 0, y2: height, class: "threat" }));
  }
  margins.forEach((margin, i) => {
    if (margin === undefined) return;
    const outcome = (margin > 0 ? "robust" : "broken") + (i === selected ? " selected" : "");
    const top = Math.min(y(margin), y(0)), tall = Math.max(2, Math.abs(y(margin) - y(0)));
    chart.append(createSvg("rect", { x: 40 * i + 9, y: top, width: 22, height: tall, rx: 3, class: outcome }));
  });
  chart.append(createSvg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), class: "zero" }));
  $("chart").replaceChildren(chart);
}

function showDifference(bytes, pixels, inputShape) {
  const clean = toPixels(bytes), change = pixels.map((p, i) => p - clean[i]);
  const largest = change.reduce((most, c) => Math.max(most, Math.abs(c)), 0), factor = largest ? 0.5 / largest : 0;
  paint($("clean"), clean, inputShape);
  paint($("difference"), change.map(c => 0.5 + factor * c), inputShape);
  paint($("adversarial"), pixels, inputShape);
  $("factor").textContent = largest ? `difference, amplified ${factor.toFixed(factor < 10 ? 1 : 0)} times` : "no difference";
}

function showAttack(labels, label, logits, eps, threatEps) {
  const correct = logits && rank(logits).decision === label;
  const verdict = eps ? (correct ? "ROBUST" : "BROKEN") : (correct ? "CORRECT" : "MISCLASSIFIED");
  $("verdict").textContent = logits ? verdict : "";
  $("verdict").className = correct ? "robust" : "broken";
  const relative = `${eps === threatEps ? "" : `${formatEps(eps / threatEps)} times `}the threat model's eps`;
  const prefix = eps ? `At eps ${formatEps(eps)} (${relative}), ` : "Without an attack, ";
  const decision = logits && labels[rank(logits).decision];
  $("sentence").textContent = !logits ? `${prefix}no result yet.`
    : correct ? `${prefix}the model classifies the image correctly as ${decision}${eps ? "; the attack fails" : ""}.`
    : `${prefix}the model classifies the image as ${decision} instead of ${labels[label]}${eps ? "; the attack succeeds" : ""}.`;
}

function showError(error) {
  $("error").textContent = error ? `${error.message || error}` : "";
  $("error").hidden = !error;
}
