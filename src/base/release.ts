/** What is smaller is not worth the call. */
const RELEASE_BYTES_MIN = 16 * 1024;

/**
 * Gives the memory of bytes that nobody uses any more back at once. The collector does not hurry: dozens of MiB of buffers
 * pile up before it runs. Afterwards every view of the buffer is empty. Bytes that are only a part of a buffer are left
 * alone: somebody else may have the rest.
 */
export function releaseBuffer({ buffer, byteLength }: Uint8Array): void {
  if (byteLength >= RELEASE_BYTES_MIN && byteLength === buffer.byteLength && buffer instanceof ArrayBuffer)
    buffer.transfer(0);
}
