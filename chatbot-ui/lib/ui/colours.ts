/** Each server has a colour of its own, wherever it is shown; given out in the order in which servers are seen. */
const COUNT = 8;
const given = new Map<string, number>();

export function colourOf(server: string): string {
  let number = given.get(server);
  if (number === undefined) given.set(server, (number = given.size % COUNT));
  return `var(--server-${number})`;
}
