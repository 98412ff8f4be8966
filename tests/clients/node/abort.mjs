// Streams left in the middle: the work behind them ends, and the next call is answered.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { asked, client } from "./client.mjs";

const long = { ...asked, max_tokens: 4000, ignore_eos: true };

async function running() {
  const response = await fetch(`${process.env.SERVICE_URL}/metrics`, {
    headers: { authorization: `Bearer ${process.env.SERVICE_KEY}` },
  });
  const line = (await response.text()).split("\n").find((each) => each.startsWith("appliance_engine_running_rows{"));
  return Number(line.split(" ")[1]);
}

async function untilNothingRuns() {
  const deadline = Date.now() + 20_000;
  while ((await running()) > 0) {
    assert.ok(Date.now() < deadline, "the work goes on though its client is gone");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const stream = await client.chat.completions.create({ ...long, stream: true });
let seen = 0;
for await (const chunk of stream) {
  assert.ok(chunk.id);
  seen += 1;
  if (seen === 5) stream.controller.abort();
}
assert.ok(seen >= 5);
await untilNothingRuns();

const runner = client.chat.completions.stream(long);
runner.on("content", () => runner.abort());
await assert.rejects(runner.finalChatCompletion(), OpenAI.APIUserAbortError);
await untilNothingRuns();

const signal = AbortSignal.timeout(400);
await assert.rejects(client.chat.completions.create(long, { signal }), OpenAI.APIUserAbortError);
await untilNothingRuns();

assert.ok((await client.chat.completions.create(asked)).choices[0].message.content);
