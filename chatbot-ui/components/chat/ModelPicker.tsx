"use client";

import { useApp } from "@/lib/state/app";

/** Which model answers. Models without a server for some block are listed, but cannot be chosen. */
export function ModelPicker() {
  const { models, model, asked } = useApp();
  return (
    <select
      className="picker"
      aria-label="Model"
      value={model}
      disabled={!models.length}
      onChange={(event) => useApp.setState({ model: event.target.value })}
    >
      {!model && <option value="">{asked ? "No model yet" : "Looking for models"}</option>}
      {models.map((each) => (
        <option key={each.id} value={each.id} disabled={!each.complete}>
          {each.complete ? each.id : `${each.id} (incomplete)`}
        </option>
      ))}
    </select>
  );
}
