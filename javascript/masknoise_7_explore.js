// What *Explore* and the page around it have to say to each other. The views are pages of their own inside this one.
"use strict";

(() => {
    const NUMBERS = {width: "width", height: "height", steps: "steps", guidance_scale: "cfg_scale", seed: "seed"};
    const TEXTS = {prompt: "prompt", negative_prompt: "neg_prompt"};
    const CHOICES = {sampler: "sampling", scheduler: "scheduler"};
    const WAIT = 60; // milliseconds until gradio has taken what was typed

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const all = (selector) => [...root().querySelectorAll(selector)];
    const find = (selector) => all(selector)[0];
    /** An element of the accordion, by the end of its id. */
    const ours = (name, inner = "") => find(`.masknoise-exploring [id$='masknoise_${name}'] ${inner}`.trim());
    /** One of the accordion MaskNoise in txt2img, which comes before that in img2img. */
    const scenes = (name, inner = "") => find(`[id$='masknoise_${name}'] ${inner}`.trim());

    const type = (field, value) => {
        if (!field || value === undefined || value === null) return;
        field.value = value;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        field.dispatchEvent(new Event("change", {bubbles: true}));
    };

    const number = (id) => find(`#txt2img_${id} input[type=number]`);
    const text = (id) => find(`#txt2img_${id} textarea, #txt2img_${id} input[type=text]`);
    const choice = (id) => find(`#txt2img_${id} input:checked`) || find(`#txt2img_${id} input`);

    /** The settings of the page's txt2img, by the names of a request. */
    const settings = () => {
        const found = {};
        for (const [name, id] of Object.entries(TEXTS)) if (text(id)) found[name] = text(id).value;
        for (const [name, id] of Object.entries(NUMBERS)) {
            const field = number(id);
            if (field && field.value !== "") found[name] = Number(field.value);
        }
        for (const [name, id] of Object.entries(CHOICES)) if (choice(id)) found[name] = choice(id).value;
        return found;
    };

    /** Called before an event of the accordion: its second value is what the page's settings are. */
    window.masknoiseExploreSettings = (values) => [values[0], JSON.stringify(settings()), ...values.slice(2)];

    /** Called by a view: the scene as JSON text, the prompt of the image that it is made for, and its settings by the
     * names of a request, those that are to change. */
    window.masknoiseTakeScene = (scene, prompt, changes = {}) => {
        type(scenes("json_text", "textarea"), scene);
        type(text("prompt"), prompt);
        for (const [name, id] of Object.entries(NUMBERS)) type(number(id), changes[name]);
        if ("negative_prompt" in changes) type(text("neg_prompt"), changes.negative_prompt);
        setTimeout(() => scenes("json_apply").click(), WAIT);
    };

    const PATIENCE = 300000; // milliseconds for one picture
    const field = (name) => ours(name, "textarea") || ours(name, "input");
    let tick = 0, watching = 0;
    let sent = null; // the question on its way: gradio drops what is asked while an answer is outstanding
    let waiting = null; // the newest question, on its way or to be sent next

    /** Called by a map: the picture of a place, as the address of an image; null where a newer question came first.
     * Raises what went wrong. */
    window.masknoiseExplorePlace = (question) => {
        if (waiting) waiting.resolve(null);
        tick += 1;
        const promise = new Promise((resolve, reject) => {
            waiting = {tick, question: {...question, tick}, resolve, reject};
        });
        if (!sent) send();
        return promise;
    };

    const send = () => {
        sent = {tick: waiting.tick, since: Date.now()};
        type(field("explore_place"), JSON.stringify(waiting.question));
        setTimeout(() => ours("explore_ask").click(), WAIT);
        watching = watching || setInterval(watch, WAIT);
    };

    const watch = () => {
        const text = field("explore_reply") && field("explore_reply").value;
        const answer = text ? JSON.parse(text) : {};
        if (answer.tick !== sent.tick && Date.now() - sent.since < PATIENCE) return;
        sent = null;
        if (waiting && waiting.tick !== answer.tick) return send();
        clearInterval(watching);
        watching = 0;
        const {resolve, reject} = waiting;
        waiting = null;
        if (answer.words) reject(new Error(answer.words));
        else resolve(answer.image || null);
    };
})();
