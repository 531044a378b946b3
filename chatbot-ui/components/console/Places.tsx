"use client";

import type { Place, Swarm } from "@/lib/state/swarm";

/** Directories and routers: what holds the swarm together. */
export function Places({ swarm }: { swarm: Swarm }) {
  return (
    <section className="places" aria-label="Directories and routers">
      <h3>Directories</h3>
      <List places={swarm.directories} />
      {swarm.routers.length > 0 && (
        <>
          <h3>Routers</h3>
          <List places={swarm.routers} />
        </>
      )}
    </section>
  );
}

function List({ places }: { places: Place[] }) {
  return (
    <ul>
      {places.map((place) => (
        <li key={place.key}>
          <b>{place.name || "directory"}</b> <span className="quiet">{place.addresses.join(", ")}</span>
        </li>
      ))}
    </ul>
  );
}
