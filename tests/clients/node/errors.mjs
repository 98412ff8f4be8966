// Every refusal is the class that callers catch, and answers carry their request's id.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { asked, client } from "./client.mjs";

await assert.rejects(client.chat.completions.create({ ...asked, temperature: 3 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  assert.match(error.message, /must be in \[0, 2\]/);
  return true;
});
await assert.rejects(client.chat.completions.create({ ...asked, max_tokens: 9000, stream: true }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.code, "context_length_exceeded");
  return true;
});
await assert.rejects(client.chat.completions.create({ ...asked, model: "nothing" }), OpenAI.NotFoundError);
await assert.rejects(client.withOptions({ apiKey: "sk-nobody" }).models.list(), OpenAI.AuthenticationError);
await assert.rejects(
  client.chat.completions.create({ ...asked, max_tokens: 4000, ignore_eos: true }, { timeout: 500 }),
  OpenAI.APIConnectionTimeoutError,
);

const { data, response } = await client.chat.completions
  .create(asked, { headers: { "x-request-id": "mine-2" } })
  .withResponse();
assert.equal(response.headers.get("x-request-id"), "mine-2");
assert.equal(data._request_id, "mine-2");
