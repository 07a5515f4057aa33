// Opens the published vectors with WebCrypto alone, as a browser would: node open_sealed.mjs sealing-vectors.json

import { readFileSync } from "node:fs";

const { subtle } = globalThis.crypto;
const utf8 = new TextEncoder();

const bytesOf = (base64) => Uint8Array.from(atob(base64.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
const hexOf = (bytes) => Array.from(new Uint8Array(bytes), (b) => b.toString(16).padStart(2, "0")).join("");
const join = (...parts) => Uint8Array.from(parts.flatMap((part) => [...part]));

function prefixed(text) {
  const data = utf8.encode(text);
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, data.length);
  return join(length, data);
}

function int64(text) {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigInt64(0, BigInt(text));
  return bytes;
}

const hkdf = (info) => ({ name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info });

async function open(masterKey, { kind, namespace, key, timestamp, item, op }, envelope) {
  const master = await subtle.importKey("raw", bytesOf(masterKey), "HKDF", false, ["deriveBits", "deriveKey"]);
  const keyId = new Uint8Array(await subtle.deriveBits(hkdf(utf8.encode("rstore/1/kid")), master, 256)).slice(0, 8);
  const head = envelope.slice(0, 9);
  if (hexOf(head) !== "01" + hexOf(keyId)) throw new Error("sealed under another key");
  const info = join(utf8.encode("rstore/1/seal"), prefixed(namespace), prefixed(kind), prefixed(key));
  const subkey = await subtle.deriveKey(hkdf(info), master, { name: "AES-GCM", length: 256 }, false, ["decrypt"]);
  const additionalData = join(
    head,
    timestamp === undefined ? [] : int64(timestamp),
    item === undefined ? [] : join(prefixed(item), prefixed(op)),
  );
  const algorithm = { name: "AES-GCM", iv: envelope.slice(9, 21), additionalData };
  return new Uint8Array(await subtle.decrypt(algorithm, subkey, envelope.slice(21)));
}

const { vectors } = JSON.parse(readFileSync(process.argv[2], "utf8"));
for (const { master_key, plaintext, envelope, ...place } of vectors) {
  const opened = await open(master_key, place, bytesOf(envelope));
  if (hexOf(opened) !== plaintext) throw new Error(`wrong plaintext for ${JSON.stringify(place)}`);
}
console.log(`${vectors.length} vectors open`);
