/** The connecting side: a name or an address becomes a stream of bytes, or a channel to a service. */
import { connect as connectTcp, type Socket, type TcpNetConnectOpts } from 'node:net';
import type { PeerCertificate, SecureContext, TLSSocket } from 'node:tls';
import { nodeTls } from '../base/builtins.ts';
import { isNostosError, NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { parseAddress } from './address.ts';
import { ByteStream, Intake, connectionError, startTimer, type ByteStreamOptions } from './byte-stream.ts';
import type { Channel } from './channel.ts';
import { checkLimits } from './options.ts';
import { encodePreamble } from './preamble.ts';
import { SocketChannel, type SocketChannelOptions } from './socket-channel.ts';
import { checkIdentity, refused, type TlsIdentity } from './tls-identity.ts';

export interface ClientTls extends TlsIdentity {
  /** The node that must be at the other end. Without it, the certificate must be for the host name that is connected to. */
  readonly node?: string | undefined;
  /** The cluster that the other end must belong to. */
  readonly cluster?: string | undefined;
}

export interface ConnectOptions extends Omit<ByteStreamOptions, 'peerNode'> {
  readonly tls?: ClientTls | undefined;
  /** Finding the address, connecting and the handshake of TLS together. */
  readonly connectTimeoutMs?: number | undefined;
  /** Ends the attempt; an established connection is closed by its owner. */
  readonly signal?: AbortSignal | undefined;
}

export type ServiceConnectOptions = ConnectOptions & SocketChannelOptions;

/**
 * A channel to the service of this name at `host:port`. A dispatcher does not answer the name: one that does not know it
 * closes, which the first `receive` tells as `CHANNEL_CLOSED`.
 */
export async function connectToService(
  address: string,
  name: string,
  options: ServiceConnectOptions = {},
): Promise<Channel> {
  const preamble = encodePreamble(name);
  checkLimits(options);
  const stream = await connectStream(address, options);
  try {
    await stream.write([preamble]);
  } catch (error) {
    stream.close();
    throw error;
  }
  return new SocketChannel(stream, options);
}

/** A connection as bytes, for protocols that are not made of frames. */
export async function connectStream(address: string, options: ConnectOptions = {}): Promise<ByteStream> {
  const target = parseAddress(address);
  checkLimits(options);
  if (target.port === 0) throw new NostosError('INVALID_ARGUMENT', `${address}: port 0 is for listening only`);
  options.signal?.throwIfAborted();
  const { tls } = options;
  const intake = new Intake();
  const { onread } = intake;
  const socket = tls === undefined ? connectTcp({ ...target, onread }) : startTls(address, { ...target, onread }, tls);
  await established(socket, address, tls === undefined ? 'connect' : 'secureConnect', options);
  try {
    const peerNode = tls && verifiedNode(socket as TLSSocket, address, tls);
    return new ByteStream(socket, { ...options, peerNode }, intake);
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Both sides speak TLS 1.3 with a certificate. */
export function secureContext(identity: TlsIdentity): SecureContext {
  try {
    return nodeTls().createSecureContext({ ...identity, minVersion: 'TLSv1.3' });
  } catch (error) {
    throw new NostosError(
      'INVALID_ARGUMENT',
      `the certificates for TLS are not usable: ${(error as Error).message}; nostos certs node makes them`,
      { cause: error },
    );
  }
}

export function subjectAltName(socket: TLSSocket): string | undefined {
  return socket.getPeerX509Certificate()?.subjectAltName;
}

function startTls(address: string, target: TcpNetConnectOpts, tls: ClientTls): TLSSocket {
  const { ca, cert, key } = tls;
  return nodeTls().connect({
    ...target,
    secureContext: secureContext({ ca, cert, key }),
    // Said, since NODE_TLS_REJECT_UNAUTHORIZED=0 in the environment would be the answer otherwise.
    rejectUnauthorized: true,
    // Called within the handshake, once the certificate is known to come from the authority.
    checkServerIdentity: (_host, certificate) => whyNot(certificate, address, tls),
  });
}

/** Why the server is not the one that was meant. */
function whyNot(certificate: PeerCertificate, address: string, { node, cluster }: ClientTls): Error | undefined {
  try {
    checkIdentity(certificate.subjectaltname, address, { node, cluster });
  } catch (error) {
    return error as NostosError;
  }
  return node === undefined ? nodeTls().checkServerIdentity(parseAddress(address).host, certificate) : undefined;
}

/** Once more, so that no setting of the process can have left the checks of the handshake out. */
function verifiedNode(socket: TLSSocket, address: string, tls: ClientTls): string {
  if (!socket.authorized) throw refused(address, 'UNAUTHORIZED', 'its certificate was not verified');
  const problem = whyNot(socket.getPeerCertificate(), address, tls);
  if (problem !== undefined)
    throw isNostosError(problem) ? problem : refused(address, 'OTHER_HOST', problem.message, problem);
  return checkIdentity(subjectAltName(socket), address, tls).node;
}

async function established(
  socket: Socket,
  address: string,
  event: 'connect' | 'secureConnect',
  { connectTimeoutMs = DEFAULT_LIMITS.connectTimeoutMs, signal }: ConnectOptions,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const late = new NostosError('NETWORK_TIMEOUT', `${address} did not answer within ${connectTimeoutMs} ms`);
  const timer = startTimer(connectTimeoutMs, () => reject(late));
  // oxlint-disable-next-line typescript/prefer-promise-reject-errors -- the reason of a signal is the caller's
  const cancelled = (): void => reject(signal!.reason);
  const failed = (error: Error): void => {
    const { authorizationError: reason } = socket as Partial<TLSSocket>;
    const ours = isNostosError(error) || !reason;
    reject(ours ? connectionError(error, address) : refused(address, String(reason), error.message, error));
  };
  const closed = (): void => reject(new NostosError('CHANNEL_CLOSED', `${address} closed the connection`));
  signal?.addEventListener('abort', cancelled, { once: true });
  socket.once(event, resolve).on('error', failed).once('close', closed);
  try {
    await promise;
    socket.off('error', failed).off('close', closed);
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', cancelled);
  }
}
