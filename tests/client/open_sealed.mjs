// Opens the published vectors: node open_sealed.mjs sealing-vectors.json

import { readFileSync } from "node:fs";
import { bytesOf, hexOf, open } from "./envelope.mjs";

const { vectors } = JSON.parse(readFileSync(process.argv[2], "utf8"));
for (const { master_key, plaintext, envelope, ...place } of vectors) {
  const opened = await open(master_key, place, bytesOf(envelope));
  if (hexOf(opened) !== plaintext) throw new Error(`wrong plaintext for ${JSON.stringify(place)}`);
}
console.log(`${vectors.length} vectors open`);
