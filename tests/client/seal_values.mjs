// Seals: places with keys and plaintexts in, on standard input, envelopes out.

import { readFileSync } from "node:fs";
import { seal } from "./envelope.mjs";

const bytesOfHex = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const wanted = JSON.parse(readFileSync(0, "utf8"));
const sealed = wanted.map(({ master_key, plaintext, ...place }) => seal(master_key, place, bytesOfHex(plaintext)));
console.log(JSON.stringify(await Promise.all(sealed)));
