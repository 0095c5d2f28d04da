// What the page has to know of a graph that is not in the manifest, read from the ONNX file.

const GRAPH = 7, NODE = 1, OUTPUT = 2, NAME = 3, TYPE = 4; // field numbers of ONNX's protobuf
const LENGTHS = { 1: 8, 5: 4 }; // of what has a fixed one, by wire type

/** The fields of a protobuf message in bytes[at, end): [number, start, end]. */
function* fields(bytes, at, end) {
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < end) {
    const tag = varint(), kind = tag & 7;
    const length = kind === 0 ? (varint(), 0) : LENGTHS[kind] ?? varint();
    yield [Math.floor(tag / 8), at, at + length];
    at += length;
  }
}

/**
 * Names of the nodes of a type that have more than `most` outputs.
 * @param {Uint8Array} bytes an ONNX file
 */
export function wideNodes(bytes, type, most) {
  const text = (start, end) => new TextDecoder().decode(bytes.subarray(start, end));
  const found = [];
  for (const [graph, from, to] of fields(bytes, 0, bytes.length)) {
    if (graph !== GRAPH) continue;
    for (const [node, start, end] of fields(bytes, from, to)) {
      if (node !== NODE) continue;
      let name = "", kind = "", outputs = 0;
      for (const [field, first, last] of fields(bytes, start, end)) {
        if (field === OUTPUT) outputs++;
        else if (field === NAME) name = text(first, last);
        else if (field === TYPE) kind = text(first, last);
      }
      if (kind === type && outputs > most) found.push(name);
    }
  }
  return found;
}
