/*
 * Live: the picture itself under the strokes. Sends what is painted, also while the pointer is down, to the host's route
 * and shows what comes back (docs/live.md). When the first picture of a request is about to come, the newest state is
 * sent, so that the host goes on at once; it ends whatever the host still does for the one before it.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

    const QUIET = 600; // milliseconds without an edit until the masks give way to the picture
    const SHADES = {off: 1, painting: 0.2, watching: 0.06}; // how strongly the masks are shown
    const FADE = 0.04; // of a shade, a frame
    const KEPT = 1000; // measurements
    const LEAD = 25; // milliseconds that the next request is sent before the picture is expected
    const USUAL = 9; // pictures by whose median it is expected
    const SIDES = [64, 2048];
    const SWITCHING = 1000; // milliseconds until a host has taken note of another model
    const MODEL = "#setting_sd_model_checkpoint input, .model_selection input"; // where a WebUI shows it

    const app = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const byId = (id) => app().querySelector(`#${CSS.escape(id)}`);

    /** A field of the page by its id: a text, a number, or what a list shows. */
    function valueOf(id, otherwise) {
        const place = byId(id);
        const choices = place?.querySelector("input[type=radio]") ? "input[type=radio]:checked" : null;
        const field = place?.querySelector(choices ?? "textarea, input[type=number], input:not([type=checkbox]), select");
        return field && field.value !== "" ? field.value : otherwise;
    }

    function button(label, title, onclick) {
        const node = document.createElement("button");
        Object.assign(node, {type: "button", className: "mn-button", title, textContent: label, onclick});
        return node;
    }

    class Live {
        /** `mounted`: the canvas's, whose `config.live` names the route. */
        constructor(mounted) {
            this.mounted = mounted;
            this.panel = mounted.panel;
            this.stage = mounted.panel.stage;
            this.route = new URL(mounted.config.live.route.replace(/^\//, ""), document.baseURI).href;
            this.session = [...crypto.getRandomValues(new Uint32Array(3))].map((n) => n.toString(36)).join("-");
            this.seed = Math.floor(Math.random() * 2 ** 31);
            this.on = false;
            this.breathing = false;
            this.requests = 0;
            this.unanswered = []; // requests whose first picture has not come: at most two, the second sent in time
            this.streams = new Set(); // requests that are heard
            this.oldest = 0; // request whose pictures may be shown: none of an older one comes after a newer one's
            this.pictures = 0;
            this.moves = []; // when the pointer moved, of moves that no picture shows yet
            this.delays = []; // how long it took until one did
            this.parts = []; // of the pictures: what took how long
            this.wholes = []; // of the last ones, from request to picture
            this.build();
            this.listen();
        }

        // --- What is seen

        build() {
            this.toggle = button("Live", "The picture follows your hand while you paint", () => this.setOn(!this.on));
            this.toggle.classList.add("mn-live-toggle");
            this.breathe = button("Breathe", "Play the noise's motion on the picture", () => this.setBreathing(!this.breathing));
            this.keepButton = button("Keep", "Put this picture into the gallery", () => this.keep());
            this.backdropButton = button("Use as backdrop", "Show this picture behind the masks, also without Live", () =>
                this.panel.setBackdrop(this.image?.src ?? null),
            );
            this.figures = document.createElement("span");
            this.figures.className = "mn-live-figures";
            this.words = document.createElement("span");
            this.words.className = "mn-live-words";
            this.words.setAttribute("role", "status");
            this.node = document.createElement("div");
            this.node.className = "mn-group mn-live";
            this.node.setAttribute("role", "group");
            this.node.setAttribute("aria-label", "Live");
            this.node.append(this.toggle, this.breathe, this.keepButton, this.backdropButton, this.figures, this.words);
            this.panel.toolbar.node.after(this.node);
            this.update();
        }

        update() {
            this.toggle.setAttribute("aria-pressed", String(this.on));
            this.breathe.setAttribute("aria-pressed", String(this.breathing));
            this.breathe.hidden = !this.on;
            this.keepButton.hidden = this.backdropButton.hidden = !this.on || !this.image;
            this.figures.hidden = !this.on;
            if (!this.on) this.say("");
        }

        /** The same words are not said again. */
        say(words) {
            if (this.words.textContent !== words) this.words.textContent = words;
        }

        show(image, event, asked) {
            const first = !this.image;
            this.image = image;
            this.pictures++;
            this.oldest = asked.number;
            this.stage.live = image;
            this.shown = {kind: event.kind, state: asked.text, frame: event.frame};
            this.stage.update();
            const {moves} = asked;
            asked.moves = [];
            requestAnimationFrame(() => {
                const now = performance.now();
                this.delays.push(...moves.map((moved) => now - moved));
                this.delays.splice(0, this.delays.length - KEPT);
            });
            const {draw, denoise, decode} = event.milliseconds;
            if (event.kind === "sketch" && asked.whole === undefined) {
                const whole = (asked.whole = performance.now() - asked.sent);
                this.parts.push({draw, denoise, decode, transport: whole - draw - denoise - decode, whole});
                this.parts.splice(0, this.parts.length - KEPT);
                this.wholes = [...this.wholes, whole].slice(-USUAL);
            }
            const rate = event.steps / (denoise / 1000);
            const speed = denoise > 0 ? `${rate.toFixed(rate < 10 ? 1 : 0)} steps/s · ` : "";
            this.figures.textContent = `${speed}${Math.round(event.kind === "sketch" ? asked.whole : denoise)} ms`;
            if (first) this.update();
        }

        /** How strongly the masks are shown goes towards what it should be. */
        fade() {
            if (this.fading) return;
            const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
            const step = () => {
                this.fading = null;
                const painting = this.stage.gesture !== null || performance.now() - this.edited < QUIET;
                const wanted = !this.on || !this.image ? SHADES.off : painting ? SHADES.painting : SHADES.watching;
                const gap = wanted - this.stage.shade;
                if (Math.abs(gap) > 1e-3) {
                    const most = painting || still || wanted === SHADES.off ? 1 : FADE;
                    this.stage.shade += Math.max(-most, Math.min(most, gap));
                    this.stage.update();
                }
                // Until the masks rest where they should, and no longer: an idle page does nothing.
                if (Math.abs(wanted - this.stage.shade) > 1e-3) this.fading = requestAnimationFrame(step);
                else if (this.on && painting && this.image) this.fading = setTimeout(step, QUIET + 20);
            };
            this.fading = requestAnimationFrame(step);
        }

        // --- On and off

        setOn(on) {
            this.on = on;
            this.edited = performance.now();
            if (on) {
                this.last = null;
                this.seen = JSON.stringify(this.settings());
                this.model = app().querySelector(MODEL)?.value;
                this.changed();
            } else {
                this.breathing = false;
                this.stop();
                this.stage.live = this.image = null;
            }
            this.update();
            this.fade();
        }

        setBreathing(breathing) {
            this.breathing = breathing;
            if (breathing) this.last = null;
            this.update();
            this.changed();
        }

        keep() {
            const {session, keep} = this.mounted.config.live;
            const field = byId(session).querySelector("textarea, input");
            field.value = this.session;
            field.dispatchEvent(new Event("input", {bubbles: true}));
            Promise.resolve().then(() => Promise.resolve()).then(() => byId(keep).click());
        }

        listen() {
            const painting = (event) => {
                if (!this.on || !this.stage.gesture?.operations) return;
                this.moves.push(event.timeStamp);
                this.changed();
            };
            this.stage.canvas.addEventListener("pointermove", painting);
            this.stage.canvas.addEventListener("pointerdown", painting);
            this.onInput = (event) => {
                if (!this.on || this.node.contains(event.target)) return;
                this.mounted.check(); // asks for the controls' values, with which `changed` is called again
                this.changed();
            };
            this.onHide = () => (document.hidden ? this.stop() : this.on && this.changed());
            this.onLeave = () => this.on && this.stop();
            document.addEventListener("input", this.onInput);
            document.addEventListener("visibilitychange", this.onHide);
            window.addEventListener("pagehide", this.onLeave);
        }

        close() {
            if (this.on) this.stop();
            this.on = false;
            document.removeEventListener("input", this.onInput);
            document.removeEventListener("visibilitychange", this.onHide);
            window.removeEventListener("pagehide", this.onLeave);
        }

        // --- Asking

        /** Something may have changed: send the newest state, when the one before has been answered or is about to be. */
        changed() {
            if (!this.on) return;
            this.wanted = true;
            this.advance();
        }

        advance() {
            if (!this.on || !this.wanted || !this.inTime() || document.hidden) return;
            if (this.panel.root.offsetParent === null) return; // nobody sees it
            this.wanted = false;
            const text = this.state();
            if (text === null || text === this.last) return (this.moves = []);
            this.last = text;
            this.edited = performance.now();
            this.fade();
            this.send(text);
        }

        /** How long a request is on its way until another may follow it, in milliseconds. */
        get usual() {
            const sorted = [...this.wholes].sort((a, b) => a - b);
            return sorted.length < USUAL ? Infinity : sorted[USUAL >> 1] - LEAD;
        }

        inTime() {
            const [asked, next] = this.unanswered;
            return !asked || (!next && !this.breathing && performance.now() - asked.sent >= this.usual);
        }

        /** What is painted, the stroke in progress with it. */
        painting() {
            const {editor} = this.panel;
            this.stage.gesture?.flush?.();
            const operations = this.stage.gesture?.operations?.() ?? [];
            const {active} = editor;
            if (!operations.length || !active) return editor.text;
            const chain = operations.reduce(MaskNoise.link, active.chain);
            return MaskNoise.serialise(MaskNoise.withLayer(editor.document, active.id, {chain}), editor.masks).text;
        }

        /** The request's body, null while the controls' values are not known yet. */
        state() {
            const {values} = this.mounted;
            if (!values) return null;
            const side = (n) => Math.min(Math.max(Math.floor(n / 8) * 8, SIDES[0]), SIDES[1]);
            const {width, height} = this.panel.editor;
            return JSON.stringify({
                session: this.session,
                args: ["", values[0], this.painting(), ...values.slice(1)],
                ...this.settings(),
                width: side(width),
                height: side(height),
                breathe: this.breathing,
            });
        }

        /** The picture's own settings, as the page's fields have them. */
        settings() {
            const {tab} = this.mounted.config;
            const seed = Math.floor(Number(valueOf(`${tab}_seed`, 0)));
            return {
                prompt: valueOf(`${tab}_prompt`, ""),
                negative_prompt: valueOf(`${tab}_neg_prompt`, ""),
                steps: Number(valueOf(`${tab}_steps`, 20)),
                guidance_scale: Number(valueOf(`${tab}_cfg_scale`, 4)),
                seed: seed < 0 ? this.seed : seed,
                sampler: valueOf(`${tab}_sampling`, ""),
                scheduler: valueOf(`${tab}_scheduler`, ""),
            };
        }

        /** Notice what the host has changed without an event: pasted settings, another model. */
        look() {
            if (!this.on) return;
            const settings = JSON.stringify(this.settings());
            const model = app().querySelector(MODEL)?.value;
            if (settings !== this.seen) this.changed();
            if (model !== this.model) {
                setTimeout(() => {
                    this.last = null;
                    this.changed();
                }, SWITCHING);
            }
            [this.seen, this.model] = [settings, model];
        }

        async send(text) {
            const controller = new AbortController();
            const asked = {text, controller, sent: performance.now(), moves: this.moves, number: ++this.requests};
            this.moves = [];
            const patient = this.unanswered.length > 0;
            for (const before of this.streams) if (!this.unanswered.includes(before)) before.controller.abort();
            this.streams = new Set([...this.unanswered, asked]);
            this.unanswered.push(asked);
            if (this.usual < Infinity) setTimeout(() => this.advance(), Math.max(0, this.usual) + 1);
            const current = () => this.streams.has(asked) && this.on;
            try {
                const headers = {"content-type": "application/json"};
                const body = patient ? `${text.slice(0, -1)},"patient":true}` : text;
                const response = await fetch(this.route, {method: "POST", headers, body, signal: controller.signal});
                if (!response.ok) throw new Error(await refusal(response));
                for await (const event of events(response.body)) {
                    if (!current()) return;
                    await this.hear(event, asked);
                }
                if (current() && this.breathing) this.last = null; // a breath is as long as a request: ask for another
            } catch (error) {
                if (current()) this.say(`${error.message || error}`); // said once: only another edit asks again
            } finally {
                if (this.streams.delete(asked)) {
                    this.answered(asked);
                    if (this.breathing && this.last === null) this.changed();
                }
            }
        }

        async hear(event, asked) {
            if (event.image) {
                const image = new Image();
                image.src = event.image;
                const decoded = image.decode();
                this.answered(asked); // the host goes on while this picture is decoded and drawn
                await decoded;
                if (!this.on || asked.number < this.oldest) return;
                if (!asked.still) this.say("");
                return this.show(image, event, asked);
            }
            if (event.kind === "still") {
                this.breathing = false;
                asked.still = true;
                this.say(event.words);
                this.update();
            } else if (!asked.still) {
                this.say(event.words);
            }
            this.answered(asked);
        }

        /** The request has had its first answer: the next one may be sent. */
        answered(asked) {
            this.unanswered = this.unanswered.filter((other) => other !== asked);
            this.advance();
        }

        /** End what the host does for this page. */
        stop() {
            for (const {controller} of this.streams) controller.abort();
            this.streams = new Set();
            this.unanswered = [];
            this.last = null;
            this.oldest = this.requests + 1;
            const body = new Blob([JSON.stringify({session: this.session})], {type: "application/json"});
            fetch(`${this.route}/stop`, {method: "POST", body, keepalive: true}).catch(() => {});
        }
    }

    /** What a refused request says. */
    async function refusal(response) {
        const found = await response.json().catch(() => null);
        if (!Array.isArray(found)) return `The host answers ${response.status}.`;
        return found.map(({path, message}) => (path ? `${path}: ${message}` : message)).join("; ");
    }

    /** The lines of a stream, as what their JSON says. */
    async function* events(body) {
        const reader = body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = "";
        for (;;) {
            const {value, done} = await reader.read();
            if (done) return;
            const lines = (rest + value).split("\n");
            rest = lines.pop();
            for (const line of lines) yield JSON.parse(line);
        }
    }

    Object.assign(MaskNoise, {Live});
})();
