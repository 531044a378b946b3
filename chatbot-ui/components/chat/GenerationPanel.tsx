"use client";

import { useEffect, useState } from "react";
import { routesOf } from "@/lib/chat/adapter";
import { colourOf } from "@/lib/ui/colours";
import type { Hop, GenerationTrace } from "@/lib/storage/types";
import { count, seconds } from "@/lib/ui/format";

/** How an answer was made: how fast, and by which servers. */
export function GenerationPanel({ making }: { making: GenerationTrace }) {
  const [routes, setRoutes] = useState(making.routes);
  useEffect(() => {
    if (!making.routes && making.id) routesOf(making.id).then(setRoutes);
  }, [making]);
  const rate = making.span && making.tokens > 1 ? (making.tokens - 1) / making.span : undefined;
  return (
    <div className="making">
      <dl className="figures">
        {rate !== undefined && <Figure name="Speed" value={`${rate.toFixed(1)} tokens/s`} />}
        {making.first !== undefined && <Figure name="First token after" value={seconds(making.first)} />}
        <Figure name="Length" value={count(making.tokens, "token")} />
        <Figure name="Model" value={making.model} />
      </dl>
      {routes?.length ? (
        routes.map((hops, number) => (
          <Route key={number} hops={hops} title={number === 0 ? "Route" : "Then"} />
        ))
      ) : (
        <p className="quiet">The gateway does not know the route of this answer any longer.</p>
      )}
    </div>
  );
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

/** The servers of a route, as wide as the blocks that each computed. */
function Route({ hops, title }: { hops: Hop[]; title: string }) {
  return (
    <div className="route">
      <span className="quiet">{title}</span>
      <ol>
        {hops.map((hop) => (
          <li key={hop.start} style={{ flexGrow: hop.end - hop.start, background: colourOf(hop.key) }}>
            <b>{hop.name || "a server"}</b> {hop.start}:{hop.end}
          </li>
        ))}
      </ol>
    </div>
  );
}
