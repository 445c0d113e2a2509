// The page: selected model, image and epsilon. `generation` counts selections; results of earlier ones are dropped.
const config = JSON.parse($("config").textContent);
const server = new Server();
let models = [], model = null, examples = null, example = null, generation = 0;

const setState = name => { document.body.dataset.state = name; };

// Run a task, show its error if it fails, and ask for the API key if the server requires one.
async function run(task) {
  const current = ++generation;
  showError(null);
  setState("busy");
  try {
    await task(current);
    if (current === generation) setState("ready");
  } catch (error) {
    if (current !== generation) return;
    if (error.status === 401) return askForKey();
    showError(error);
    setState("error");
  }
}

function askForKey() {
  if (server.key) showError("The server does not accept this key.");
  server.key = "";
  $("main").hidden = true;
  $("entry").hidden = false;
  $("about").textContent = "";
  setState("key");
}

async function start(current) {
  if (location.protocol === "file:") throw new Error("Open this page from a web server, for example `python -m http.server`.");
  models = config.models ? config.models.map(entry => new LocalModel(entry, config.runtime)) : await server.models();
  if (current !== generation) return;
  $("model").replaceChildren(...models.map(({ name }) => createElement("option", { textContent: name, value: name })));
  $("choice").hidden = models.length < 2;
  await selectModel(models[0], current);
}

async function selectModel(selected, current) {
  for (const id of ["result", "attack"]) $(id).hidden = true;
  $("about").textContent = `Loading ${selected.name}.`;
  await selected.open();
  const loaded = await selected.examples();
  if (current !== generation) return;
  [model, examples, example] = [selected, loaded, null];
  $("entry").hidden = true;
  $("main").hidden = false;
  $("name").textContent = model.name;
  $("samples").hidden = !examples;
  $("no-examples").hidden = Boolean(examples);
  const shape = model.inputShape.join(" x ");
  $("about").textContent = `${model.name}: input ${shape}, ${model.labels.length} classes; ${model.location}.`;
  const threat = examples && `${examples.threat.norm}, eps ${formatEps(examples.threat.eps)}`;
  $("foot").textContent = examples ? `Threat model: ${threat}, for pixels in [0, 1].` : "";
  showThumbnails();
  if (examples) await selectExample(0, current);
}

function showThumbnails() {
  $("thumbs").replaceChildren(...(examples?.images ?? []).map((image, i) => {
    const canvas = createElement("canvas"), bytes = decodeBase64(image.pixels), name = model.labels[image.label];
    paint(canvas, toPixels(bytes), model.inputShape);
    const button = createElement("button", { type: "button", title: name }, canvas);
    button.setAttribute("aria-label", `Example ${i + 1}: ${name}`);
    button.addEventListener("click", () => run(current => selectExample(i, current)));
    return button;
  }));
}

function markThumbnail(index) {
  [...$("thumbs").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
}

// Show an example, and run the model on it at every radius, beginning without an attack.
async function selectExample(index, current) {
  const image = examples.images[index], bytes = decodeBase64(image.pixels);
  const attacks = image.attacks.map(a => toPixels(bytes, new Int8Array(decodeBase64(a.delta).buffer), a.scale));
  example = {
    label: image.label, bytes, inputs: [toPixels(bytes), ...attacks],
    radii: [0, ...examples.radii], logits: [],
  };
  markThumbnail(index);
  const { steps } = examples.attack, { norm, eps } = examples.threat;
  $("eps").max = example.radii.length - 1;
  $("eps").value = 0;
  $("max-eps").textContent = `eps ${formatEps(example.radii.at(-1))}`;
  $("explanation").textContent = `Image ${image.index} of the test split of ${examples.dataset}. The attacks were computed `
    + `beforehand on the reference model: PGD, ${norm}, ${steps} steps at each of ${examples.radii.length} radii. The `
    + "decisions are computed now. Each bar is the margin of the true class; below the line the attack succeeds. The "
    + `dashed line marks the eps of the threat model, ${formatEps(eps)}. Stronger attacks may succeed at a smaller eps.`;
  $("attack").hidden = false;
  for (let i = 0; i < example.inputs.length; i++) {
    const logits = await model.infer(example.inputs[i]);
    if (current !== generation) return;
    example.logits[i] = logits;
    showSelectedEps();
  }
}

function showSelectedEps() {
  const i = Number($("eps").value), { label, logits, radii, inputs, bytes } = example;
  const margins = radii.map((_, k) => logits[k] && marginOf(logits[k], label));
  $("eps").setAttribute("aria-valuetext", `eps ${formatEps(radii[i])}`);
  paint($("input"), inputs[i], model.inputShape);
  if (logits[i]) showDecision(model.labels, logits[i]);
  showAttack(model.labels, label, logits[i], radii[i], examples.threat.eps);
  showChart(margins, i, radii.indexOf(examples.threat.eps));
  showDifference(bytes, inputs[i], model.inputShape);
}

async function classifyFile(file, current) {
  const bytes = await readImage(file, model.inputShape);
  const logits = await model.inferFile(file, bytes);
  if (current !== generation) return;
  markThumbnail(-1);
  $("attack").hidden = true;
  paint($("input"), toPixels(bytes), model.inputShape);
  showDecision(model.labels, logits);
}

function onDrag(event) {
  event.preventDefault();
  $("drop").classList.toggle("over", event.type === "dragover");
  const file = event.type === "drop" && event.dataTransfer.files[0];
  if (file && model) run(current => classifyFile(file, current));
}

for (const type of ["dragover", "dragleave", "drop"]) addEventListener(type, onDrag);
$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (file) run(current => classifyFile(file, current));
  $("file").value = "";
});
$("eps").addEventListener("input", showSelectedEps);
$("model").addEventListener("change", () => run(current => selectModel(models[$("model").selectedIndex], current)));
$("entry").addEventListener("submit", event => {
  event.preventDefault();
  server.key = $("key").value.trim();
  $("key").value = "";
  run(start);
});
run(start);
