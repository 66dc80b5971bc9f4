// Runs the networks beside the page, so that the page never waits for them.

import { between, decode, mix, move, toPixels, truncate } from "./styles.js";
import { latent } from "./random.js";

let ort, networks, directions;
const known = new Map(); // w of what was drawn lately, by network, seed and choice
const MOST_KNOWN = 64;

class Sentence extends Error {}

async function fetched(file, bytes) {
  let response;
  try {
    response = await fetch(file);
  } catch {
    throw new Sentence(`The file ${file} could not be fetched. Is the server still there?`);
  }
  if (!response.ok) {
    throw new Sentence(`The server has no file ${file} (${response.status}). Upload it again.`);
  }
  const content = await response.arrayBuffer();
  if (content.byteLength !== bytes) {
    const sizes = `${content.byteLength} bytes instead of ${bytes}`;
    throw new Sentence(`The file ${file} is incomplete or another one (${sizes}). Upload it again.`);
  }
  return content;
}

async function session({ file, bytes }) {
  const content = await fetched(file, bytes);
  try {
    return await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  } catch (error) {
    console.warn(error);
    throw new Sentence(`The file ${file} is not a network that can be run. Make the page again.`);
  }
}

async function start(description) {
  const { runtime } = description;
  try {
    ort = await import(`./${runtime.module}`);
    ort.env.wasm.numThreads = 1; // several need headers that static hosts do not send
    ort.env.wasm.wasmPaths = { mjs: new URL(runtime.glue, location).href };
    ort.env.wasm.wasmBinary = await fetched(runtime.wasm.file, runtime.wasm.bytes);
  } catch (error) {
    if (error instanceof Sentence) throw error;
    throw new Sentence(`ONNX Runtime could not be started: ${error.message}`);
  }
  directions = decode(description.directions);
  networks = [];
  for (const network of description.networks) {
    const [mapping, synthesis] = [await session(network.mapping), await session(network.synthesis)];
    const [mean, choices] = [decode(network.w_avg), decode(network.choices)];
    networks.push({ ...network, mapping, synthesis, mean, choices });
  }
}

async function mapped(index, seed, choice) {
  const key = `${index}/${seed}/${choice}`;
  if (known.has(key)) return known.get(key);
  const { mapping, z_dim, c_dim, choices } = networks[index];
  const inputs = { z: new ort.Tensor("float32", latent(seed, z_dim), [1, z_dim]) };
  if (c_dim) {
    const c = choices.slice(choice * c_dim, (choice + 1) * c_dim);
    inputs.c = new ort.Tensor("float32", c, [1, c_dim]);
  }
  const w = (await mapping.run(inputs)).w.data.slice();
  if (known.size >= MOST_KNOWN) known.delete(known.keys().next().value);
  known.set(key, w);
  return w;
}

async function draw(index, { seed, next, share, other, crossover, psi, choice, amounts }) {
  const { synthesis, mean, num_ws, w_dim, resolution, channels } = networks[index];
  const style = async (number) => {
    const w = truncate(await mapped(index, number, choice), mean, psi);
    return move(w, directions, amounts);
  };
  let first = await style(seed);
  if (share) first = between(first, await style(next), share);
  const second = crossover < num_ws ? await style(other) : first;
  const ws = mix(first, second, crossover, num_ws);
  const { img } = await synthesis.run({ ws: new ort.Tensor("float32", ws, [1, num_ws, w_dim]) });
  return new ImageData(toPixels(img.data, channels), resolution, resolution);
}

async function answer({ kind, ...rest }) {
  if (kind === "start") {
    await start(rest.description);
    return { kind: "ready" };
  }
  const pictures = [];
  for (let index = 0; index < networks.length; index++) pictures.push(await draw(index, rest.state));
  return { kind: "pictures", pictures };
}

addEventListener("message", async ({ data }) => {
  try {
    postMessage(await answer(data));
  } catch (error) {
    console.warn(error);
    const text = error instanceof Sentence ? error.message : `The network failed: ${error.message}`;
    postMessage({ kind: "trouble", text });
  }
});
