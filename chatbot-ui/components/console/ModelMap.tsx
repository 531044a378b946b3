"use client";

import { CircleAlert, CircleCheck, Waypoints } from "lucide-react";
import type { CSSProperties } from "react";
import { colourOf } from "@/lib/ui/colours";
import { lanes, type Lost, type Server, type SwarmModel } from "@/lib/state/swarm";
import { count, seconds, thousands } from "@/lib/ui/format";

interface Props {
  model: SwarmModel;
  lost: Lost[];
  chosen: string;
  choose: (key: string) => void;
}

type Bar = { start: number; end: number } & ({ server: Server; lost: boolean });

/** The blocks of a model from left to right, and above one another the servers that hold them. */
export function ModelMap({ model, lost, chosen, choose }: Props) {
  const { blocks, replicas, missing } = model;
  const step = stepOf(blocks);
  const bars: Bar[] = [
    ...model.servers.map((server) => ({ start: server.start, end: server.end, server, lost: false })),
    ...lost.map(({ server }) => ({ start: server.start, end: server.end, server, lost: true })),
  ];
  return (
    <section className="map" aria-label={`Model ${model.name}`}>
      <header>
        <h3>{model.name}</h3>
        <span className="quiet">
          {count(blocks, "block")}
          {model.context_length ? `, context ${thousands(model.context_length)} tokens` : ""}
        </span>
        <span className="gap" />
        {model.complete ? (
          <span className="badge good">
            <CircleCheck aria-hidden /> every block is served
          </span>
        ) : (
          <span className="badge bad">
            <CircleAlert aria-hidden /> no server for {missing.map(([start, end]) => `${start}:${end}`).join(", ")}
          </span>
        )}
      </header>
      <Coverage replicas={replicas} />
      <ul
        className="lanes"
        data-busy={model.servers.some((server) => server.sessions > 0) || undefined}
        style={{ "--step": `${(step / blocks) * 100}%` } as CSSProperties}
      >
        {lanes(bars).map((lane, number) => (
          <li className="lane" key={number}>
            {lane.map((bar) => (
              <ServerBar
                key={bar.server.key}
                bar={bar}
                blocks={blocks}
                chosen={bar.server.key === chosen}
                choose={() => choose(bar.server.key)}
              />
            ))}
          </li>
        ))}
      </ul>
      <Scale blocks={blocks} step={step} />
      <p className="legend">
        The strip counts the servers of each block. Each bar below is a server over the blocks that it holds, with the round
        trip from this gateway. The light line at its foot is the share of its cache that answers have reserved; a blinking
        dot means that it computes for somebody.
      </p>
    </section>
  );
}

/** How many ready servers hold each block, as runs of blocks with the same number. */
function Coverage({ replicas }: { replicas: number[] }) {
  const runs: { start: number; end: number; servers: number }[] = [];
  replicas.forEach((servers, block) => {
    const last = runs.at(-1);
    if (last?.servers === servers) last.end = block + 1;
    else runs.push({ start: block, end: block + 1, servers });
  });
  return (
    <ol className="coverage" aria-label="Servers for each block">
      {runs.map(({ start, end, servers }) => (
        <li
          key={start}
          data-level={Math.min(servers, 3)}
          style={{ flexGrow: end - start }}
          title={`blocks ${start}:${end}: ${count(servers, "server")}`}
        >
          <span className="visually-hidden">
            blocks {start}:{end}:{" "}
          </span>
          {servers === 0 ? "none" : `${servers}×`}
        </li>
      ))}
    </ol>
  );
}

interface BarProps {
  bar: Bar;
  blocks: number;
  chosen: boolean;
  choose: () => void;
}

function ServerBar({ bar, blocks, chosen, choose }: BarProps) {
  const { server, lost } = bar;
  const used = server.kv_tokens ? 1 - server.kv_free / server.kv_tokens : 0;
  const state = lost ? "lost" : server.state;
  const place = {
    left: `${(bar.start / blocks) * 100}%`,
    width: `${((bar.end - bar.start) / blocks) * 100}%`,
    "--colour": colourOf(server.key),
  } as CSSProperties;
  return (
    <button
      className="server"
      data-state={state}
      style={place}
      disabled={lost}
      aria-pressed={chosen}
      onClick={choose}
    >
      <span className="load" style={{ width: `${Math.round(used * 100)}%` }} />
      <span className="name">
        {server.sessions > 0 && !lost && <i className="busy" />}
        {server.name}
      </span>
      <span className="facts">
        {lost ? (
          "left"
        ) : state === "ready" ? (
          <>
            <span>
              {server.start}:{server.end}
            </span>
            {server.round_trip !== null && <span>{seconds(server.round_trip)}</span>}
            {server.relayed && (
              <span>
                <Waypoints aria-hidden /> relay
              </span>
            )}
          </>
        ) : state === "joining" ? (
          "loading"
        ) : (
          "leaving"
        )}
      </span>
      <span className="visually-hidden">
        {lost ? "" : `, ${state}, ${count(server.sessions, "session")}, ${Math.round(used * 100)}% of its cache reserved`}
      </span>
    </button>
  );
}

/** From one mark to the next: a round number of blocks, so that not more stand there than fit. */
const stepOf = (blocks: number) => [1, 2, 5, 10, 20, 50, 100].find((each) => blocks / each <= 10) ?? 200;

function Scale({ blocks, step }: { blocks: number; step: number }) {
  const marks = Array.from({ length: Math.floor(blocks / step) + 1 }, (_, index) => index * step);
  return (
    <div className="scale" aria-hidden>
      {marks.map((mark) => (
        <span key={mark} style={{ left: `${(mark / blocks) * 100}%` }}>
          {mark}
        </span>
      ))}
    </div>
  );
}
