// Models: served (over the V2 protocol) or local (in this browser). Both return logits.
class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The server, and the API key it may require. The key is kept in this object only.
class Server {
  key = "";

  async request(path, options = {}) {
    const headers = { ...options.headers, ...(this.key && { Authorization: `Bearer ${this.key}` }) };
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    if (response.ok) return response.json();
    const body = await response.json().catch(() => ({}));
    throw new ServerError(response.status, body.error || `the server answered with status ${response.status}`);
  }

  async models() {
    return (await this.request("v2/models")).models.map(name => new ServedModel(this, name));
  }
}

class ServedModel {
  constructor(server, name) {
    this.server = server;
    this.name = name;
    this.path = `v2/models/${encodeURIComponent(name)}`;
  }

  async open() {
    const metadata = await this.server.request(this.path);
    this.inputShape = metadata.inputs[0].shape.slice(1);
    this.labels = JSON.parse(metadata.parameters["robust_export.labels"]);
    this.hasExamples = metadata.parameters["robust_export.examples"] === "true";
    this.location = `runs on the server (${metadata.platform})`;
  }

  async examples() {
    return this.hasExamples ? this.server.request(`examples/${encodeURIComponent(this.name)}`) : null;
  }

  infer(pixels) {
    const tensor = { name: "pixels", datatype: "FP32", shape: [1, ...this.inputShape] };
    return this.send(tensor, new Uint8Array(pixels.buffer));
  }

  // Send the file itself; the server decodes it.
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
    return (await this.server.request(`${this.path}/infer`, { method: "POST", headers, body })).outputs[0].data;
  }
}

// A model that onnxruntime-web runs in this browser: WebAssembly, one thread.
class LocalModel {
  constructor(config, runtime) {
    Object.assign(this, config);
    this.runtime = new URL(runtime, location.href).href;
  }

  async open() {
    const ort = await import(this.runtime);
    const folder = new URL(".", this.runtime).href;
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = folder;
    ort.env.wasm.wasmBinary = await fetchBytes(`${folder}ort-wasm-simd-threaded.wasm`);
    this.session = await ort.InferenceSession.create(new Uint8Array(await fetchBytes(this.file)), {
      executionProviders: ["wasm"],
    });
    this.Tensor = ort.Tensor;
    this.location = "runs in this browser; your images stay on this device";
  }

  async examples() {
    return this.examplesFile ? JSON.parse(new TextDecoder().decode(await fetchBytes(this.examplesFile))) : null;
  }

  async infer(pixels) {
    const [input, output] = [this.session.inputNames[0], this.session.outputNames[0]];
    const feeds = { [input]: new this.Tensor("float32", pixels, [1, ...this.inputShape]) };
    return Array.from((await this.session.run(feeds))[output].data);
  }

  async inferFile(file, bytes) {
    return this.infer(toPixels(bytes));
  }
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`cannot load ${url} (status ${response.status})`);
  return response.arrayBuffer();
}
