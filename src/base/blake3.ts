/**
 * BLAKE3 of whole buffers. A call into the native module costs more than hashing a usual record, so what fits one chunk
 * is hashed in WebAssembly: a third of the time, and nothing for the collector but the hash itself.
 */
import { blake3 } from '@napi-rs/blake-hash';
import { BLAKE3_WASM_BASE64 } from './blake3.wasm.ts';
import type { Hash } from './brands.ts';
import { HASH_BYTES } from './brands.ts';

const CHUNK_BYTES = 1024;

/** What is used of the WebAssembly API, which Node has without the types of the DOM. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: unknown };
};

interface Kernel {
  readonly memory: { readonly buffer: ArrayBuffer };
  hash(length: number): void;
}

const compiled = new WebAssembly.Module(Buffer.from(BLAKE3_WASM_BASE64, 'base64'));
const kernel = new WebAssembly.Instance(compiled).exports as Kernel;
const input = new Uint8Array(kernel.memory.buffer, 0, CHUNK_BYTES);
const output = new Uint8Array(kernel.memory.buffer, CHUNK_BYTES, HASH_BYTES);

export function hashBlake3(bytes: Uint8Array): Hash {
  if (bytes.length > CHUNK_BYTES) return blake3(bytes) as Uint8Array as Hash;
  input.set(bytes);
  kernel.hash(bytes.length);
  return output.slice() as Hash;
}
