"use client";

import { X } from "lucide-react";
import type { ReactNode } from "react";
import { colourOf } from "@/lib/ui/colours";
import type { Server } from "@/lib/state/swarm";
import { bytes, count, seconds, thousands } from "@/lib/ui/format";

const STATES = { joining: "loading its blocks", ready: "ready", draining: "leaving" };

/** Everything that the swarm says of one server. */
export function ServerPanel({ server, close }: { server: Server; close: () => void }) {
  const kv = server.kv_tokens - server.kv_free;
  return (
    <section className="panel" aria-label={`Server ${server.name}`}>
      <header>
        <i className="dot" style={{ background: colourOf(server.key) }} />
        <h3>{server.name}</h3>
        <span className="quiet">{STATES[server.state]}</span>
        <span className="gap" />
        <button className="icon" aria-label="Close details" onClick={close}>
          <X aria-hidden />
        </button>
      </header>
      <div className="meters">
        <Meter name="Cache reserved" used={kv} whole={server.kv_tokens} words={`${thousands(kv)} of ${thousands(server.kv_tokens)} tokens`} />
        <Meter name="Memory" used={server.memory_used} whole={server.memory} words={`${bytes(server.memory_used)} of ${bytes(server.memory)}`} />
      </div>
      <dl className="figures">
        <Fact name="Blocks">
          {server.start}:{server.end} of {server.blocks}
          {server.movable ? ", may move" : ""}
        </Fact>
        <Fact name="Answers in the making">{count(server.sessions, "session")}</Fact>
        <Fact name="Computes on">
          {server.device}, {server.quantize || server.dtype}
        </Fact>
        <Fact name="Speed">{server.throughput ? `${thousands(Math.round(server.throughput))} blocks × tokens/s` : "not measured yet"}</Fact>
        <Fact name="From this gateway">
          {server.round_trip === null ? "not connected yet" : `${seconds(server.round_trip)} when it was connected`}
          {server.relayed ? ", through a relay" : server.round_trip === null ? "" : ", directly"}
        </Fact>
        <Fact name="Backend">
          {server.backend} {server.version}
        </Fact>
        <Fact name="Addresses">{server.addresses.join(", ")}</Fact>
        <Fact name="Id">
          <code>{server.id}</code>
        </Fact>
      </dl>
    </section>
  );
}

function Meter({ name, used, whole, words }: { name: string; used: number; whole: number; words: string }) {
  return (
    <label>
      <span>
        {name} <b>{words}</b>
      </span>
      <meter min={0} max={whole || 1} value={used}>
        {words}
      </meter>
    </label>
  );
}

function Fact({ name, children }: { name: string; children: ReactNode }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
