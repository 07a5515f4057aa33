// Seals with WebCrypto alone, as a browser would: places with keys and plaintexts in, on standard input, envelopes out.

import { readFileSync } from "node:fs";

const { subtle } = globalThis.crypto;
const utf8 = new TextEncoder();

const bytesOf = (base64) => Uint8Array.from(atob(base64.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
const bytesOfHex = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
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

async function seal({ master_key, plaintext, kind, namespace, key, timestamp, item, op }) {
  const master = await subtle.importKey("raw", bytesOf(master_key), "HKDF", false, ["deriveBits", "deriveKey"]);
  const keyId = new Uint8Array(await subtle.deriveBits(hkdf(utf8.encode("rstore/1/kid")), master, 256)).slice(0, 8);
  const head = join([1], keyId);
  const info = join(utf8.encode("rstore/1/seal"), prefixed(namespace), prefixed(kind), prefixed(key));
  const subkey = await subtle.deriveKey(hkdf(info), master, { name: "AES-GCM", length: 256 }, false, ["encrypt"]);
  const additionalData = join(
    head,
    timestamp === undefined ? [] : int64(timestamp),
    item === undefined ? [] : join(prefixed(item), prefixed(op)),
  );
  const iv = globalThis.crypto.getRandomValues(new Uint8Array(12));
  const ciphertext = new Uint8Array(await subtle.encrypt({ name: "AES-GCM", iv, additionalData }, subkey, bytesOfHex(plaintext)));
  return btoa(String.fromCharCode(...join(head, iv, ciphertext)));
}

const wanted = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(await Promise.all(wanted.map(seal))));
