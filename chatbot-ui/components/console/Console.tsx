"use client";

import { Plus } from "lucide-react";
import { useState } from "react";
import { useSwarm } from "@/lib/state/swarm";
import { count } from "@/lib/ui/format";
import { AddMachine } from "./AddMachine";
import { Events } from "./Events";
import { ModelMap } from "./ModelMap";
import { Places } from "./Places";
import { ServerPanel } from "./ServerPanel";
import "./console.css";

/** The swarm as it is now: who serves which blocks, how it is reached, and what happens. */
export function Console() {
  const { swarm, happenings, lost, connected, problem } = useSwarm();
  const [chosen, setChosen] = useState("");
  const [adding, setAdding] = useState(false);
  const servers = swarm?.models.flatMap((model) => model.servers) ?? [];
  const server = servers.find((each) => each.key === chosen);
  // A model whose last server has just left is still shown, by the places of those that are lost.
  const gone = [...new Set(lost.map((each) => each.server.model))].filter(
    (name) => !swarm?.models.some((model) => model.name === name),
  );
  return (
    <div className="console">
      <header className="console-head">
        <div>
          <h2>Swarm</h2>
          <p className="quiet">
            {swarm
              ? `${count(servers.length, "server")}, ${count(swarm.models.length, "model")}`
              : problem || "Connecting to the gateway."}
            {swarm && (
              <span className={connected ? "live" : "live off"}>{connected ? "live" : problem || "not connected"}</span>
            )}
          </p>
        </div>
        <button className="main" onClick={() => setAdding(true)} disabled={!swarm}>
          <Plus aria-hidden /> Add a machine
        </button>
      </header>
      {swarm && !swarm.models.length && !gone.length && (
        <section className="empty">
          <h3>No server is here yet</h3>
          <p className="quiet">
            A directory and this gateway are running. Add a machine that serves a model, and it appears here.
          </p>
        </section>
      )}
      {swarm?.models.map((model) => (
        <ModelMap
          key={model.name}
          model={model}
          lost={lost.filter((each) => each.server.model === model.name)}
          chosen={chosen}
          choose={(key) => setChosen(key === chosen ? "" : key)}
        />
      ))}
      {gone.map((name) => (
        <p key={name} className="problem">
          {name} has lost its last server.
        </p>
      ))}
      {server && <ServerPanel server={server} close={() => setChosen("")} />}
      <div className="console-foot">
        <Events happenings={happenings} />
        {swarm && <Places swarm={swarm} />}
      </div>
      {adding && swarm && <AddMachine swarm={swarm} close={() => setAdding(false)} />}
    </div>
  );
}
