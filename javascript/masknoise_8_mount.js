/*
 * Puts a canvas into every page that has a place for one, and keeps it and the page's hidden fields the same.
 *
 * The place (lib_masknoise/ui/accordions.py) names its fields. `painting` holds the whole state as JSON text: it is
 * written after every change, and read again whenever something else (a preset, pasted infotext) has written it.
 * A preview is asked for by filling `request` and pressing a hidden button; the answer arrives in `reply`.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    if (MaskNoise.instances) return; // the page already has these scripts
    MaskNoise.instances = new Map();

    const CHECK = 250; // milliseconds between looks at fields that change without an event
    const WRITE = 60; // milliseconds after a letter of a prompt, or any change of a long painting
    const LONG = 300_000; // characters of a painting that is not written at once
    const PATIENCE = 60_000; // milliseconds until an unanswered preview counts as lost
    const SETTLING = 2000; // milliseconds in which gradio may still set a new page's fields to what they begin with
    const EMPTY = "{}";

    const app = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const byId = (id) => app().querySelector(`#${CSS.escape(id)}`);

    /** Set a gradio text field, so that gradio notices. */
    function fill(field, value) {
        field.value = value;
        field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    /** Run something when gradio has taken over what was just filled in: it does so in a microtask. A timer would wait
     *  for the next picture frame, which is what the user waits for. */
    const soon = (work) =>
        Promise.resolve()
            .then(() => Promise.resolve())
            .then(work);

    /** A mounted canvas: one tab's. */
    class Mounted {
        constructor(root, config) {
            this.config = config;
            this.root = root;
            this.storage = `masknoise/${config.tab}`;
            this.panel = new MaskNoise.Panel(root, {
                config,
                onEdit: (typing) => this.edited(typing),
                onViewChange: () => this.storeView(),
                lastImage: () => this.lastImage(),
                convert: (data) => this.convert(data),
                setCommon: (text) => fill(byId(config.common).querySelector("textarea, input"), text),
            });
            this.text = null;
            this.asked = 0;
            this.answered = 0;
            this.stale = true;
            this.mountedAt = performance.now();
            this.live = config.live ? new MaskNoise.Live(this) : null;
            this.bands = new MaskNoise.Bands(root, config.bands, byId);
            this.input = config.input ? new MaskNoise.InputPicture(config.input, this.panel, byId, app) : null;
            this.restore();
            this.restoreSettings();
            MaskNoise.page.openWhenTicked(byId(config.accordion));
            byId(config.presets)?.click(); // the page may have been built before the last of them was saved
            this.check();
            this.timer = setInterval(() => this.check(), CHECK);
            this.flushBefore = () => this.write();
            // Whatever is pressed, Generate above all, must find the last stroke in its field.
            document.addEventListener("pointerdown", this.flushBefore, true);
            document.addEventListener("keydown", this.flushBefore, true);
            window.addEventListener("pagehide", this.flushBefore);
        }

        get field() {
            return byId(this.config.painting)?.querySelector("textarea");
        }

        // --- The painting

        edited(typing) {
            this.dirty = true;
            this.live?.changed();
            clearTimeout(this.writing);
            if (!typing && (this.text?.length ?? 0) < LONG) this.write();
            else this.writing = setTimeout(() => this.write(), WRITE);
        }

        write() {
            if (!this.dirty) return;
            this.dirty = false;
            this.text = this.panel.editor.text;
            if (this.field) fill(this.field, this.text);
            this.store("painting", this.text);
            this.storeView();
            this.ask();
        }

        /** Take over what something else has written. */
        read() {
            const text = this.field?.value ?? EMPTY;
            if (this.dirty || text === this.text) return;
            if (text === EMPTY && performance.now() - this.mountedAt < SETTLING) return fill(this.field, this.text);
            this.text = text;
            try {
                this.panel.editor.load(text);
                this.dirty = false;
            } catch (error) {
                this.panel.fail(`The painting cannot be read: ${error.message}`);
            }
            this.store("painting", text);
            this.ask();
        }

        /** After a reload the field is empty again, and the session remembers what it held. */
        restore() {
            const kept = sessionStorage.getItem(`${this.storage}/painting`);
            const now = this.field?.value || EMPTY;
            this.text = now;
            const text = now === EMPTY && kept ? kept : now;
            try {
                this.panel.editor.start(text);
                this.restoreView();
            } catch {
                this.panel.fail("What was painted before cannot be read.");
            }
            this.dirty = text !== now;
            this.panel.update("document");
            this.write();
        }

        /** The other controls are gradio's: only its own event can set them all. */
        restoreSettings() {
            const kept = sessionStorage.getItem(`${this.storage}/settings`);
            if (!kept) return;
            fill(byId(this.config.kept).querySelector("textarea"), kept);
            soon(() => byId(this.config.restore).click());
        }

        store(name, value) {
            try {
                sessionStorage.setItem(`${this.storage}/${name}`, value);
            } catch {
                this.panel.fail("This painting is too large to survive a reload: save it as a preset.");
            }
        }

        storeView() {
            const {editor} = this.panel;
            const layers = editor.layers.map((layer) => editor.view(layer));
            const active = editor.layers.indexOf(editor.active);
            this.store("view", JSON.stringify({layers, active, tool: editor.tool, following: this.panel.following}));
        }

        restoreView() {
            const {editor} = this.panel;
            const kept = JSON.parse(sessionStorage.getItem(`${this.storage}/view`) ?? "{}");
            const {layers = [], active = 0, tool = {}, following = false} = kept;
            editor.layers.forEach((layer, i) => layers[i] && editor.views.set(layer.id, layers[i]));
            editor.activeId = editor.layers[active]?.id ?? editor.activeId;
            Object.assign(editor.tool, tool);
            this.panel.follow(following);
        }

        // --- The page around

        check() {
            if (!this.root.isConnected) return this.unmount();
            this.read();
            this.input?.look();
            const set = this.config.size.map((id) => Number(byId(id)?.querySelector("input[type=number]")?.value));
            const size = this.input?.size() ?? set;
            if (size.every((n) => n >= 8)) this.panel.setSize(...size);
            const settings = `${size} ${this.settings()}`;
            if (settings !== this.seen) {
                this.seen = settings;
                this.ask();
            }
            this.panel.lookForImage();
            this.live?.look();
            MaskNoise.page.foldMasks(app());
            this.advance(); // the last answer may have been lost
        }

        /** What the other controls show: a preview depends on them, and gradio tells nobody that they changed. */
        settings() {
            const values = [];
            for (const id of this.config.controls) {
                for (const input of byId(id)?.querySelectorAll("input, textarea") ?? []) {
                    values.push(input.type === "checkbox" || input.type === "radio" ? input.checked : input.value);
                }
            }
            return values.join("\n");
        }

        lastImage() {
            const images = app().querySelectorAll(this.config.gallery);
            return images[0]?.src ?? null;
        }

        /** A picture that the browser cannot show, as a PNG by the library; it goes along with the next preview. */
        convert(data) {
            this.converting?.reject(new Error("another picture came after it"));
            return new Promise((resolve, reject) => {
                this.converting = {data, resolve, reject};
                this.ask();
            });
        }

        // --- Previews: one at a time, always of the latest state

        ask() {
            this.stale = true;
            this.advance();
        }

        advance() {
            const waiting = this.asked > this.answered && performance.now() - this.askedAt < PATIENCE;
            const button = byId(this.config.refresh);
            const visible = this.root.offsetParent !== null; // an unseen canvas needs no preview
            const painting = this.live?.on && this.panel.stage.gesture; // the picture first: `check` comes back to it
            if (waiting || !this.stale || !button || !visible || painting) return;
            this.stale = false;
            this.asked = Math.max(this.asked, this.answered) + 1;
            this.askedAt = performance.now();
            const {width, height, layers} = this.panel.editor;
            const prompt = byId(`${this.config.tab}_prompt`)?.querySelector("textarea")?.value;
            const prompts = [...new Set(layers.map((layer) => layer.fields.prompt ?? ""))];
            fill(
                byId(this.config.request).querySelector("textarea"),
                JSON.stringify({tick: this.asked, width, height, prompts, prompt, picture: this.converting?.data}),
            );
            soon(() => button.click());
            this.listen();
        }

        listen() {
            cancelAnimationFrame(this.listening);
            this.listening = requestAnimationFrame(() => {
                const text = byId(this.config.reply)?.querySelector("textarea")?.value;
                const reply = text ? JSON.parse(text) : {};
                if (reply.tick === this.asked) return this.take(reply);
                if (performance.now() - this.askedAt < PATIENCE) this.listen();
            });
        }

        take({tick, tokens, settings, picture, refused, bands}) {
            if (picture) this.converting?.resolve(picture);
            if (refused) this.converting?.reject(new Error(refused));
            if (picture || refused) this.converting = null;
            this.store("settings", JSON.stringify(settings));
            this.values = settings;
            this.live?.changed();
            this.answered = tick;
            this.latency = performance.now() - this.askedAt;
            this.panel.setTokens(tokens);
            this.bands.take(bands);
            this.advance();
        }

        unmount() {
            clearInterval(this.timer);
            this.live?.close();
            this.panel.close();
            document.removeEventListener("pointerdown", this.flushBefore, true);
            document.removeEventListener("keydown", this.flushBefore, true);
            window.removeEventListener("pagehide", this.flushBefore);
            MaskNoise.instances.delete(this.config.tab);
        }
    }

    MaskNoise.page.listen(document);

    /** Fill the places that are still empty. */
    function mount() {
        for (const place of app().querySelectorAll(".masknoise-canvas:not([data-mounted])")) {
            const config = JSON.parse(place.dataset.config);
            if (!byId(config.painting)?.querySelector("textarea")) continue; // the page is still being built
            place.dataset.mounted = "true";
            MaskNoise.instances.set(config.tab, new Mounted(place, config));
        }
    }

    if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(mount);
    else if (typeof onUiUpdate === "function") onUiUpdate(mount);
    else setInterval(mount, CHECK);
})();
