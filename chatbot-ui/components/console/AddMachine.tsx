"use client";

import { useState } from "react";
import { invite, type Swarm } from "@/lib/state/swarm";
import { Command } from "@/components/ui/Command";
import { Dialog } from "@/components/ui/Dialog";

const SYSTEMS = ["Windows", "Linux", "macOS"] as const;
type System = (typeof SYSTEMS)[number];

const LIVES = [
  [3600, "for an hour"],
  [86400, "for a day"],
  [7 * 86400, "for a week"],
] as const;

const NO_TOKEN = "TOKEN";

/** What to type on another machine so that it serves a part of a model. */
export function AddMachine({ swarm, close }: { swarm: Swarm; close: () => void }) {
  const [system, setSystem] = useState<System>(guess);
  const [model, setModel] = useState(swarm.models[0]?.name ?? "smollm2-135m");
  const [life, setLife] = useState(3600);
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState("");
  const fetchable = swarm.models.find((each) => each.name === model)?.fetchable ?? true;

  const make = async () => {
    setProblem("");
    try {
      setToken(await invite(life, 1));
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <Dialog title="Add a machine" close={close} wide>
      {swarm.local_only && (
        <p className="notice" role="note">
          This swarm listens on this machine only, so no other machine can reach it yet. Stop it (Ctrl-C) and start it
          again with <code>python bootstrap.py up --share</code>, then come back here.
        </p>
      )}
      <ol className="steps">
        <li>
          <p>
            Put a copy of the project folder on the other machine. It needs Python 3.11, 3.12 or 3.13. Open a terminal in
            that folder.
          </p>
        </li>
        <li>
          {swarm.can_invite ? (
            <>
              <p>
                Make a join token for one machine, good{" "}
                <select aria-label="How long the token is good" value={life} onChange={(event) => (setLife(Number(event.target.value)), setToken(""))}>
                  {LIVES.map(([seconds, words]) => (
                    <option key={seconds} value={seconds}>
                      {words}
                    </option>
                  ))}
                </select>{" "}
                <button onClick={make}>{token ? "Make another" : "Make token"}</button>
              </p>
              {problem && (
                <p className="problem" role="alert">
                  {problem}
                </p>
              )}
            </>
          ) : (
            <>
              <p>
                Make a join token where the directory runs, and put it in place of <code>{NO_TOKEN}</code> below:
              </p>
              <Command text={`swarm token create --expires ${LIFE_FLAGS[life]} --uses 1`} name="Make a token" />
            </>
          )}
        </li>
        <li>
          <div className="tabs" role="group" aria-label="System of the other machine">
            {SYSTEMS.map((each) => (
              <button key={each} aria-pressed={each === system} onClick={() => setSystem(each)}>
                {each}
              </button>
            ))}
            {swarm.models.length > 1 && (
              <select aria-label="Model to serve" value={model} onChange={(event) => setModel(event.target.value)}>
                {swarm.models.map((each) => (
                  <option key={each.name}>{each.name}</option>
                ))}
              </select>
            )}
          </div>
          <p>{system === "Windows" ? "In PowerShell:" : "In the terminal:"}</p>
          <Command
            name={`Command for ${system}`}
            text={commandFor(system, fetchable ? model : `FOLDER --model-name ${model}`, token || NO_TOKEN)}
            disabled={swarm.can_invite && !token}
          />
          {!fetchable && (
            <p className="quiet">
              {model} was loaded from a folder. Copy that folder to the other machine and put its path in place of FOLDER.
            </p>
          )}
        </li>
        <li>
          <p>
            The first time it installs what is needed, which takes a few minutes. Then the machine appears on the map by
            itself, and takes the blocks that need a server most.
          </p>
        </li>
      </ol>
    </Dialog>
  );
}

const LIFE_FLAGS: Record<number, string> = { 3600: "1h", 86400: "1d", 604800: "7d" };

function guess(): System {
  const agent = navigator.userAgent;
  return /Windows/.test(agent) ? "Windows" : /Mac/.test(agent) ? "macOS" : "Linux";
}

function commandFor(system: System, model: string, token: string): string {
  if (system === "Windows") {
    return [
      "py bootstrap.py install",
      `$env:SWARM_JOIN = "${token}"`,
      `.venv\\Scripts\\swarm-server ${model}`,
    ].join("\n");
  }
  return ["python3 bootstrap.py install", `export SWARM_JOIN='${token}'`, `.venv/bin/swarm-server ${model}`].join("\n");
}
