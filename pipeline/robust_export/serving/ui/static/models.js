// Models: a served one, asked over the V2 protocol, and one that runs in this browser. Both give logits.
class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// A server and the key that it may ask for; the key is held here alone.
class Server {
  key = "";

  async ask(path, options = {}) {
    const headers = { ...options.headers, ...(this.key && { Authorization: `Bearer ${this.key}` }) };
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    if (response.ok) return response.json();
    const said = await response.json().catch(() => ({}));
    throw new Refusal(response.status, said.error || `the server answered ${response.status}`);
  }

  async models() {
    return (await this.ask("v2/models")).models.map(name => new Served(this, name));
  }
}

class Served {
  constructor(server, name) {
    this.server = server;
    this.name = name;
    this.path = `v2/models/${encodeURIComponent(name)}`;
  }

  async open() {
    const said = await this.server.ask(this.path);
    this.plane = said.inputs[0].shape.slice(1);
    this.labels = JSON.parse(said.parameters["robust_export.labels"]);
    this.attacked = said.parameters["robust_export.examples"] === "true";
    this.where = `served here (${said.platform})`;
  }

  async examples() {
    return this.attacked ? this.server.ask(`examples/${encodeURIComponent(this.name)}`) : null;
  }

  infer(pixels) {
    return this.send({ name: "pixels", datatype: "FP32", shape: [1, ...this.plane] }, new Uint8Array(pixels.buffer));
  }

  // The server decodes the file itself.
  async inferFile(file) {
    const content = new Uint8Array(await file.arrayBuffer()), element = new Uint8Array(4 + content.length);
    new DataView(element.buffer).setUint32(0, content.length, true);
    element.set(content, 4);
    return this.send({ name: "image", datatype: "BYTES", shape: [1] }, element);
  }

  async send(tensor, raw) {
    tensor.parameters = { binary_data_size: raw.length };
    const head = new TextEncoder().encode(JSON.stringify({ inputs: [tensor], outputs: [{ name: "logits" }] }));
    const headers = { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": head.length };
    const body = new Blob([head, raw]);
    return (await this.server.ask(`${this.path}/infer`, { method: "POST", headers, body })).outputs[0].data;
  }
}

// A model that onnxruntime-web runs in this browser: WebAssembly, one thread.
class Local {
  constructor(facts, runtime) {
    Object.assign(this, facts);
    this.runtime = new URL(runtime, location.href).href;
  }

  async open() {
    const ort = await import(this.runtime);
    const folder = new URL(".", this.runtime).href;
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = folder;
    ort.env.wasm.wasmBinary = await fetched(`${folder}ort-wasm-simd-threaded.wasm`);
    this.session = await ort.InferenceSession.create(new Uint8Array(await fetched(this.file)), {
      executionProviders: ["wasm"],
    });
    this.Tensor = ort.Tensor;
    this.where = "running in this browser; no image leaves it";
  }

  async examples() {
    return this.examplesFile ? JSON.parse(new TextDecoder().decode(await fetched(this.examplesFile))) : null;
  }

  async infer(pixels) {
    const [input, output] = [this.session.inputNames[0], this.session.outputNames[0]];
    const given = { [input]: new this.Tensor("float32", pixels, [1, ...this.plane]) };
    return Array.from((await this.session.run(given))[output].data);
  }

  async inferFile(file, bytes) {
    return this.infer(toPixels(bytes));
  }
}

async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} is missing (${response.status})`);
  return response.arrayBuffer();
}
