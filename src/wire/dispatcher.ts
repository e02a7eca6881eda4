/**
 * One port for many services: a peer names the service that it wants, and its handler gets the channel. Whoever names
 * none in time, one that is not there, or nothing that is a name is disconnected without a word.
 */
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { startTimer, type ByteStream } from './byte-stream.ts';
import type { ServiceHandler } from './channel.ts';
import { Listener, tell, type ListenOptions } from './listener.ts';
import { checkLimits } from './options.ts';
import { encodeServiceName, PreambleDecoder, SERVICE_NAME_BYTES_MAX } from './preamble.ts';
import { SocketChannel, type SocketChannelOptions } from './socket-channel.ts';

export interface DispatcherOptions
  extends Omit<ListenOptions, 'halfOpen'>, Omit<SocketChannelOptions, 'receiveBytesMax'> {
  /** The largest frame from a peer of a service that does not say what it takes. */
  readonly serviceRequestBytesMax?: number | undefined;
  readonly stopTimeoutMs?: number | undefined;
  /** What a handler failed with. */
  readonly onError?: ((error: unknown, where: { readonly service: string; readonly peer: string }) => void) | undefined;
}

export interface DispatcherStats {
  /** Open now. */
  readonly connections: number;
  /** Connections that reached a handler, ever. */
  readonly served: number;
  readonly handlerErrors: number;
  /** Connections that reached none, by reason. */
  readonly refused: Readonly<Record<string, number>>;
}

export class TcpServiceDispatcher {
  readonly #options: DispatcherOptions;
  readonly #services = new Map<string, ServiceHandler>();
  readonly #listener: Listener;
  readonly #streams = new Set<ByteStream>();
  readonly #running = new Set<Promise<void>>();
  readonly #refused = new Map<string, number>();
  #stopped = false;
  /** Calls of `stop`: a start that waits for one of them is ended by the next. */
  #stops = 0;
  #stopping: Promise<void> | undefined;
  #served = 0;
  #handlerErrors = 0;

  /** Does not bind. `address` is `host:port`; any host but loopback needs `tls`. */
  constructor(address: string, options: DispatcherOptions = {}) {
    this.#options = { ...checkLimits(options), idleTimeoutMs: options.idleTimeoutMs ?? DEFAULT_LIMITS.idleTimeoutMs };
    const onRefused = (error: NostosError): void => this.#refuse(error);
    this.#listener = new Listener(
      address,
      { ...this.#options, halfOpen: true, onRefused },
      (stream) => void this.#accept(stream),
    );
  }

  /** Replaces the handler of the same name, for connections to come. */
  register(handler: ServiceHandler): void {
    encodeServiceName(handler.serviceName);
    checkLimits({ requestBytesMax: handler.requestBytesMax });
    this.#services.set(handler.serviceName, handler);
  }

  /** Connections that the handler has already got go on. */
  unregister(name: string): ServiceHandler | undefined {
    const handler = this.#services.get(name);
    this.#services.delete(name);
    return handler;
  }

  getHandler(name: string): ServiceHandler | undefined {
    return this.#services.get(name);
  }

  listServices(): string[] {
    return [...this.#services.keys()].toSorted();
  }

  /** The address that it was made with: port 0 stays 0. */
  addr(): string {
    return this.#listener.address;
  }

  get isRunning(): boolean {
    return this.#listener.isListening && this.#stopping === undefined;
  }

  get stats(): DispatcherStats {
    return {
      connections: this.#listener.connections,
      served: this.#served,
      handlerErrors: this.#handlerErrors,
      refused: Object.fromEntries(this.#refused),
    };
  }

  /** Binds, and resolves with the bound `host:port`; rejects with `CLOSED` when `stop` is called before it has. */
  async start(): Promise<string> {
    const stops = this.#stops;
    if (this.#stopping !== undefined) await this.#stopping;
    if (stops !== this.#stops)
      throw new NostosError('CLOSED', `the dispatcher of ${this.addr()} was stopped while it was starting`);
    this.#stopped = false;
    return this.#listener.start();
  }

  /** Frees the port, aborts the handlers, closes their channels and waits for them. May be called more than once. */
  async stop(): Promise<void> {
    this.#stops += 1;
    this.#stopping ??= this.#stop().finally(() => (this.#stopping = undefined));
    await this.#stopping;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #stop(): Promise<void> {
    this.#listener.close();
    this.#stopped = true;
    const gone = [...this.#streams].map((stream) => stream.gone);
    for (const stream of this.#streams) stream.close();
    const { stopTimeoutMs = DEFAULT_LIMITS.stopTimeoutMs } = this.#options;
    await within(stopTimeoutMs, Promise.all([...this.#running, ...gone]));
    this.#listener.destroy();
  }

  async #accept(stream: ByteStream): Promise<void> {
    // Its TLS handshake may have ended after the stop had begun.
    if (this.#stopped) return stream.close();
    this.#streams.add(stream);
    void stream.gone.then(() => this.#streams.delete(stream));
    try {
      const handler = await this.#handlerFor(stream);
      const served = this.#serve(stream, handler);
      this.#running.add(served);
      await served;
      this.#running.delete(served);
    } catch (error) {
      if (!this.#stopped) this.#refuse(error as NostosError);
    } finally {
      stream.close();
    }
  }

  async #handlerFor(stream: ByteStream): Promise<ServiceHandler> {
    const { preambleTimeoutMs: timeoutMs = DEFAULT_LIMITS.preambleTimeoutMs } = this.#options;
    const refusal = (reason: string, why: string, cause?: unknown): NostosError =>
      new NostosError('PROTOCOL_ERROR', `${stream.peer} is refused: ${why}`, {
        details: { peer: stream.peer, reason },
        cause,
      });
    let name: string | null;
    stream.limitReadAhead(SERVICE_NAME_BYTES_MAX);
    try {
      name = await stream.read(new PreambleDecoder(), { timeoutMs });
    } catch (error) {
      throw refusal('BAD_PREAMBLE', (error as Error).message, error);
    }
    if (name === null) throw refusal('PREAMBLE_TIMEOUT', `it named no service within ${timeoutMs} ms`);
    const handler = this.#services.get(name);
    if (handler === undefined) throw refusal('UNKNOWN_SERVICE', `there is no service ${JSON.stringify(name)} here`);
    return handler;
  }

  async #serve(stream: ByteStream, handler: ServiceHandler): Promise<void> {
    this.#served += 1;
    const { serviceRequestBytesMax = DEFAULT_LIMITS.serviceRequestBytesMax } = this.#options;
    const { requestBytesMax: receiveBytesMax = serviceRequestBytesMax } = handler;
    stream.limitReadAhead(receiveBytesMax);
    try {
      await handler.handle(new SocketChannel(stream, { ...this.#options, receiveBytesMax }), { signal: stream.lost });
    } catch (error) {
      this.#cutOff(stream);
      if (this.#stopped) return;
      this.#handlerErrors += 1;
      tell(() => this.#options.onError?.(error, { service: handler.serviceName, peer: stream.peer }));
    }
  }

  /** What a handler that failed has sent still leaves, if its peer takes it soon. */
  #cutOff(stream: ByteStream): void {
    const { stopTimeoutMs = DEFAULT_LIMITS.stopTimeoutMs } = this.#options;
    const timer = startTimer(stopTimeoutMs, () =>
      stream.fail(new NostosError('NETWORK_TIMEOUT', `${stream.peer} did not take what was sent before the end`)),
    )?.unref();
    void stream.gone.then(() => clearTimeout(timer));
  }

  #refuse(error: NostosError): void {
    const { reason = error.code } = error.details as { reason?: string };
    this.#refused.set(reason, (this.#refused.get(reason) ?? 0) + 1);
    tell(() => this.#options.onRefused?.(error));
  }
}

async function within(timeoutMs: number, work: Promise<unknown>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = startTimer(timeoutMs, resolve);
  await Promise.race([work, promise]);
  clearTimeout(timer);
}
