/**
 * The network in front of one member: a port that forwards to it, until it is cut. Then what was under way is lost and
 * nobody gets through, as when a cable is pulled.
 */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

const HOST = '127.0.0.1';

export class Link {
  /** Where the member really listens; undefined while it does not run. */
  port: number | undefined;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #whole = true;

  private constructor(server: Server) {
    this.#server = server;
    server.on('connection', (from) => this.#forward(from));
  }

  static async open(): Promise<Link> {
    const server = createServer();
    server.listen(0, HOST);
    await once(server, 'listening');
    return new Link(server);
  }

  get address(): string {
    return `${HOST}:${(this.#server.address() as AddressInfo).port}`;
  }

  cut(): void {
    this.#whole = false;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend(): void {
    this.#whole = true;
  }

  close(): void {
    this.cut();
    this.#server.close();
  }

  #forward(from: Socket): void {
    if (!this.#whole || this.port === undefined) return void from.destroy();
    const to = connect({ host: HOST, port: this.port, noDelay: true });
    from.setNoDelay(true);
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      this.#sockets.add(one);
      one.pipe(other);
      one.on('error', () => {}); // its end is what counts
      one.once('close', () => {
        this.#sockets.delete(one);
        other.destroy();
      });
    }
  }
}
