// OpenAI's client for JavaScript: node openai.mjs BASE_URL PICTURE FOLDER_OF_PACKAGES; answers as a JSON array, the streamed one last.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [base, picture, packages] = process.argv.slice(2);
const { OpenAI } = createRequire(`${packages}/package.json`)("openai");
const client = new OpenAI({ baseURL: base, apiKey: "a key", maxRetries: 0 });
const url = `data:image/jpeg;base64,${readFileSync(picture).toString("base64")}`;
const about = text => ({ role: "user", content: [{ type: "text", text }, { type: "image_url", image_url: { url } }] });

const answers = [];
const messages = [about("What objects are in this image?")];
for (const next of ["Which way does the arrow point?", "How many objects are there?", null]) {
  const { message } = (await client.chat.completions.create({ model: "demo", messages })).choices[0];
  answers.push(message.content);
  messages.push(message);
  if (next) messages.push({ role: "user", content: next });
}
let streamed = "";
const stream = await client.chat.completions.create({ model: "demo", messages: [about("How many objects are there?")], stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
console.log(JSON.stringify([...answers, streamed]));
