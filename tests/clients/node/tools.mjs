// Tools: streams added up by hand and by the helper, and the helper that runs them and asks again.
import assert from "node:assert/strict";
import { client, MODEL } from "./client.mjs";

const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "get_weather", description: "Tells the weather.", parameters } };
const messages = [{ role: "user", content: "How is the weather in Oslo?" }];
const asked = { model: MODEL, messages, tools: [tool], parallel_tool_calls: false, max_tokens: 60, temperature: 0 };
const named = { type: "function", function: { name: "get_weather" } };

for (const [tool_choice, reason] of [[named, "stop"], ["required", "tool_calls"]]) {
  const whole = (await client.chat.completions.create({ ...asked, tool_choice })).choices[0];
  const calls = [];
  let finish;
  for await (const chunk of await client.chat.completions.create({ ...asked, tool_choice, stream: true })) {
    for (const piece of chunk.choices[0].delta.tool_calls ?? []) {
      const call = (calls[piece.index] ??= { id: "", name: "", arguments: "" });
      call.id += piece.id ?? "";
      call.name += piece.function.name ?? "";
      call.arguments += piece.function.arguments ?? "";
    }
    finish = chunk.choices[0].finish_reason ?? finish;
  }
  assert.equal(whole.finish_reason, reason);
  assert.equal(finish, reason);
  assert.deepEqual(
    calls.map((call) => [call.name, call.arguments]),
    whole.message.tool_calls.map((call) => [call.function.name, call.function.arguments]),
  );
  assert.ok(calls.every((call) => call.id && ["Oslo", "Rome"].includes(JSON.parse(call.arguments).city)));
}

// The helper calls the function, sends its result back, and asks again: twice here, as a call is required.
for (const stream of [false, true]) {
  const cities = [];
  const runnable = {
    type: "function",
    function: {
      ...tool.function,
      parse: JSON.parse,
      function: ({ city }) => {
        cities.push(city);
        return "It is sunny, 21 degrees.";
      },
    },
  };
  const runner = client.chat.completions.runTools(
    { ...asked, stream, tools: [runnable], tool_choice: "required" },
    { maxChatCompletions: 2 },
  );
  await runner.done();
  const roles = runner.messages.map((message) => message.role);
  assert.deepEqual(roles, ["user", "assistant", "tool", "assistant", "tool"]);
  assert.ok(cities.length === 2 && cities.every((city) => ["Oslo", "Rome"].includes(city)));
}
