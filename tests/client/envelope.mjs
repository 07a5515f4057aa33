// The envelope of docs/sealing.md, written again with WebCrypto alone, as in a browser.

const { subtle } = globalThis.crypto;
const utf8 = new TextEncoder();

export const bytesOf = (base64) => Uint8Array.from(atob(base64.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
export const hexOf = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
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

// The subkey of a place, the head of every envelope under the master key, and what is authenticated beside the ciphertext.
async function derived(masterKey, { kind, namespace, key, timestamp, item, op }, usage) {
  const master = await subtle.importKey("raw", bytesOf(masterKey), "HKDF", false, ["deriveBits", "deriveKey"]);
  const keyId = new Uint8Array(await subtle.deriveBits(hkdf(utf8.encode("rstore/1/kid")), master, 256)).slice(0, 8);
  const info = join(utf8.encode("rstore/1/seal"), prefixed(namespace), prefixed(kind), prefixed(key));
  const subkey = await subtle.deriveKey(hkdf(info), master, { name: "AES-GCM", length: 256 }, false, [usage]);
  const head = join([1], keyId);
  const additionalData = join(
    head,
    timestamp === undefined ? [] : int64(timestamp),
    item === undefined ? [] : join(prefixed(item), prefixed(op)),
  );
  return { subkey, head, additionalData };
}

export async function open(masterKey, place, envelope) {
  const { subkey, head, additionalData } = await derived(masterKey, place, "decrypt");
  if (hexOf(envelope.slice(0, 9)) !== hexOf(head)) throw new Error("sealed under another key");
  const algorithm = { name: "AES-GCM", iv: envelope.slice(9, 21), additionalData };
  return new Uint8Array(await subtle.decrypt(algorithm, subkey, envelope.slice(21)));
}

export async function seal(masterKey, place, plaintext) {
  const { subkey, head, additionalData } = await derived(masterKey, place, "encrypt");
  const iv = globalThis.crypto.getRandomValues(new Uint8Array(12));
  const ciphertext = new Uint8Array(await subtle.encrypt({ name: "AES-GCM", iv, additionalData }, subkey, plaintext));
  return btoa(String.fromCharCode(...join(head, iv, ciphertext)));
}
