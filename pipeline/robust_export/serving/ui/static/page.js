// The page: which model, which image, which epsilon. `turn` counts what was chosen; what is late is dropped.
const config = JSON.parse($("config").textContent);
const server = new Server();
let models = [], model = null, examples = null, example = null, turn = 0;

const state = name => { document.body.dataset.state = name; };

async function guarded(work) {
  const mine = ++turn;
  showError(null);
  state("busy");
  try {
    await work(mine);
    if (mine === turn) state("ready");
  } catch (error) {
    if (mine !== turn) return;
    if (error.status === 401) return askForKey();
    showError(error);
    state("error");
  }
}

function askForKey() {
  if (server.key) showError("the server does not take this key");
  server.key = "";
  $("main").hidden = true;
  $("entry").hidden = false;
  $("about").textContent = "";
  state("key");
}

async function start(mine) {
  if (location.protocol === "file:") throw new Error("open this page by a web server, such as `python -m http.server`");
  models = config.models ? config.models.map(facts => new Local(facts, config.runtime)) : await server.models();
  if (mine !== turn) return;
  $("model").replaceChildren(...models.map(({ name }) => make("option", { textContent: name, value: name })));
  $("choice").hidden = models.length < 2;
  await use(models[0], mine);
}

async function use(chosen, mine) {
  for (const id of ["answer", "attack"]) $(id).hidden = true;
  $("about").textContent = `Loading ${chosen.name}.`;
  await chosen.open();
  const found = await chosen.examples();
  if (mine !== turn) return;
  [model, examples, example] = [chosen, found, null];
  $("entry").hidden = true;
  $("main").hidden = false;
  $("name").textContent = model.name;
  $("samples").hidden = !examples;
  $("without").hidden = Boolean(examples);
  const trained = examples && `${examples.threat.norm} eps ${radius(examples.threat.eps)}`;
  $("about").textContent = `${model.name}: ${model.plane.join(" x ")} pixels to ${model.labels.length} classes, ${model.where}.`;
  $("foot").textContent = examples ? `The budget is ${trained}, of pixels in [0, 1].` : "";
  showThumbs();
  if (examples) await choose(0, mine);
}

function showThumbs() {
  $("thumbs").replaceChildren(...(examples?.images ?? []).map((image, i) => {
    const canvas = make("canvas"), bytes = unpack(image.pixels), name = model.labels[image.label];
    paint(canvas, toPixels(bytes), model.plane);
    const button = make("button", { type: "button", title: name }, canvas);
    button.setAttribute("aria-label", `Example ${i + 1}: ${name}`);
    button.addEventListener("click", () => guarded(mine => choose(i, mine)));
    return button;
  }));
}

function press(index) {
  [...$("thumbs").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
}

// Show an example, and ask the model about every radius, from no attack on.
async function choose(index, mine) {
  const image = examples.images[index], bytes = unpack(image.pixels);
  const attacks = image.attacks.map(a => toPixels(bytes, new Int8Array(unpack(a.delta).buffer), a.scale));
  example = {
    label: image.label, bytes, inputs: [toPixels(bytes), ...attacks],
    radii: [0, ...examples.radii], logits: [],
  };
  press(index);
  const { steps } = examples.attack, { norm, eps } = examples.threat;
  $("eps").max = example.radii.length - 1;
  $("eps").value = 0;
  $("most").textContent = `eps ${radius(example.radii.at(-1))}`;
  $("how").textContent = `Image ${image.index} of the test split of ${examples.dataset}. The attacks were made `
    + `beforehand on the network itself: PGD, ${norm}, ${steps} steps at each of ${examples.radii.length} radii. What `
    + "the model makes of them is asked now. A bar is the margin of the right class; where it hangs below the line, the "
    + `attack has succeeded. The dashed line is the budget, eps ${radius(eps)}. Stronger attacks may succeed earlier.`;
  $("attack").hidden = false;
  for (let i = 0; i < example.inputs.length; i++) {
    const logits = await model.infer(example.inputs[i]);
    if (mine !== turn) return;
    example.logits[i] = logits;
    slide();
  }
}

function slide() {
  const i = Number($("eps").value), { label, logits, radii, inputs, bytes } = example;
  const margins = radii.map((_, k) => logits[k] && marginOf(logits[k], label));
  $("eps").setAttribute("aria-valuetext", `eps ${radius(radii[i])}`);
  paint($("seen"), inputs[i], model.plane);
  if (logits[i]) showDecision(model.labels, logits[i]);
  showAttack(model.labels, label, logits[i], radii[i], examples.threat.eps);
  showChart(margins, i, radii.indexOf(examples.threat.eps));
  showPictures(bytes, inputs[i], model.plane);
}

async function read(file, mine) {
  const bytes = await readImage(file, model.plane);
  const logits = await model.inferFile(file, bytes);
  if (mine !== turn) return;
  press(-1);
  $("attack").hidden = true;
  paint($("seen"), toPixels(bytes), model.plane);
  showDecision(model.labels, logits);
}

function offered(event) {
  event.preventDefault();
  $("drop").classList.toggle("over", event.type === "dragover");
  const file = event.type === "drop" && event.dataTransfer.files[0];
  if (file && model) guarded(mine => read(file, mine));
}

for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, offered);
$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (file) guarded(mine => read(file, mine));
  $("file").value = "";
});
$("eps").addEventListener("input", slide);
$("model").addEventListener("change", () => guarded(mine => use(models[$("model").selectedIndex], mine)));
$("entry").addEventListener("submit", event => {
  event.preventDefault();
  server.key = $("key").value.trim();
  $("key").value = "";
  guarded(start);
});
guarded(start);
