/*
 * Everything around the stage, put together: layer actions, pictures in and out, keys. Builds its own elements.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {SIZES, TOOLS, regions} = MaskNoise;
    const {AS_IS, PERCENT, checkbox, dragNumber, element, iconButton, slider, textButton} = MaskNoise.elements;

    const HELP =
        "B brush · E eraser · F fill · L line · R rectangle · O ellipse · G gradient · V moves shapes · X subtract · [ ] size · " +
        "Shift constrains · Ctrl+Z undo · Ctrl+Shift+Z redo · Space pans · Ctrl+wheel zooms · 0 fits · " +
        "arrow keys and Enter paint without a mouse";

    const CANVAS_HELP =
        "Painting canvas. Arrow keys move the brush, Enter paints a dab, Shift+Enter a line. With the tool that moves shapes, " +
        "arrow keys move the shape, with Ctrl they resize it, Enter takes the next one, Delete removes it.";

    const KEPT = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // as they are; others become PNG
    const ACCEPT = [...KEPT, "image/bmp", "image/tiff", "image/avif", ".bmp,.tif,.tiff,.avif"].join();
    const LARGEST_FILE = 2 * 2 ** 20; // bytes kept as they are; larger pictures become grey and smaller
    const LARGEST_SENT = 16 * 2 ** 20; // bytes that the library takes of a picture
    const LARGEST_SIDE = 1024;
    const STEPS = {near: 0.02, far: 0.1}; // of the picture: what an arrow key goes, without and with Shift

    /** The numbers of the shape that the move tool holds. */
    class ShapeNumbers {
        constructor(editor) {
            this.editor = editor;
            this.name = element("strong", {});
            this.fields = element("div", {className: "mn-sliders"});
            const labels = {role: "group", "aria-label": "Selected shape"};
            this.node = element("div", {className: "mn-shape", hidden: true, ...labels}, this.name, this.fields);
        }

        update() {
            const {region} = this.editor;
            this.node.hidden = !region;
            if (!region) return;
            const name = regions.name(region.mask);
            if (this.name.textContent !== name) this.build(name, region.mask);
            regions.numbers(region.mask).forEach(({value}, i) => this.numbers[i].set(value));
        }

        build(name, mask) {
            this.name.textContent = name;
            this.numbers = regions.numbers(mask).map(({label, low, high, unit}, i) =>
                dragNumber(label, {
                    ...{min: low, max: high, step: unit === "%" ? 0.5 : 1},
                    typed: unit === "%" ? PERCENT : {...AS_IS, unit},
                    oninput: (value) => this.put(i, value),
                }),
            );
            this.fields.replaceChildren(...this.numbers.map((one) => one.node));
        }

        put(i, value) {
            const {region} = this.editor;
            if (region) this.editor.changeRegion(regions.numbers(region.mask)[i].put(value), "number");
        }
    }

    class Panel {
        /** `root` is filled. config: colours, weight {low, high, step, usual}, limits, defaults; `lastImage()` gives the
         *  last generated picture's address or null; `convert(base64)` a picture as a PNG's, by the library; `setCommon`
         *  takes what all prompts begin with. */
        constructor(root, {config, onEdit, onViewChange, lastImage, convert, setCommon}) {
            MaskNoise.raster.useDefaults(config.defaults);
            this.root = root;
            this.colours = config.colours;
            this.weight = config.weight;
            this.lastImage = lastImage;
            this.convert = convert;
            this.setCommon = setCommon;
            this.onViewChange = onViewChange;
            this.following = false;
            this.tokens = {};
            this.status = element("p", {className: "mn-status", role: "status"});
            this.editor = new MaskNoise.Editor({
                limits: config.limits,
                onStatus: (text) => this.say(text),
                onError: (text) => this.fail(text),
                onChange: (what) => {
                    this.update(what);
                    if (what === "document") onEdit(this.editor.history.kind !== null);
                    if (what === "view" || what === "tool") onViewChange();
                },
            });
            this.canvas = element("canvas", {
                className: "mn-canvas",
                tabIndex: 0,
                role: "application",
                "aria-label": CANVAS_HELP,
            });
            this.stage = new MaskNoise.Stage(this.editor, {canvas: this.canvas, colours: this.colours});
            this.toolbar = new MaskNoise.Toolbar(this);
            this.shape = new ShapeNumbers(this.editor);
            this.list = new MaskNoise.ConceptList(this);
            this.build();
            this.listen();
            this.update("document");
        }

        build() {
            const stageBox = element("div", {className: "mn-stage"}, this.canvas, this.zoomButtons());
            this.root.replaceChildren(
                this.list.start,
                this.toolbar.node,
                element(
                    "div",
                    {className: "mn-main"},
                    element(
                        "div",
                        {className: "mn-left"},
                        stageBox,
                        this.shape.node,
                        this.layerActions(),
                        this.backdropActions(),
                        this.status,
                    ),
                    this.list.node,
                ),
                element("details", {className: "mn-help"}, element("summary", {}, "Keys"), HELP),
            );
        }

        zoomButtons() {
            return element(
                "div",
                {className: "mn-zoom", role: "group", "aria-label": "Zoom"},
                iconButton("minus", "Zoom out", () => this.stage.zoomBy(0.8), "−"),
                iconButton("fit", "Fit the picture", () => this.stage.fit(), "0"),
                iconButton("plus", "Zoom in", () => this.stage.zoomBy(1.25), "+"),
            );
        }

        layerActions() {
            const {editor} = this;
            this.softness = element("input", {
                className: "mn-number",
                type: "number",
                min: 1,
                max: 100,
                step: 1,
                value: 5,
                "aria-label": "Blur width in percent of the shorter side",
                title: "Blur width, in percent of the picture's shorter side",
            });
            const amount = () => Math.min(Math.max(Number(this.softness.value) || 5, 0.1), 100) / 100;
            this.layerButtons = [
                textButton("Clear", "Empty the active layer (Delete)", () => editor.clear()),
                textButton("Invert", "Swap what is covered and what is not (I)", () => editor.invert()),
                textButton("Blur", "Soften everything on the layer so far", () => editor.blur(amount())),
                this.softness,
                textButton("Flatten", "Turn the layer into one picture, which frees it of its strokes", () =>
                    editor.flatten(),
                ),
                textButton("Import mask", "Use a picture as the layer's mask; also by drop or paste", () =>
                    this.pick((file) => this.importMask(file)),
                ),
                textButton("Export mask", "Save the layer's mask as a PNG of the picture's size", () =>
                    this.exportMask(),
                ),
            ];
            return element(
                "div",
                {className: "mn-group", role: "group", "aria-label": "Active layer"},
                ...this.layerButtons,
                textButton("Colour map", "Open a picture of flat colours: each becomes a layer, prompts are kept", () =>
                    this.pick((file) => this.importColours(file)),
                ),
            );
        }

        backdropActions() {
            const {stage} = this;
            this.backdropSlider = slider("Backdrop", {
                min: 0,
                max: 1,
                step: 0.05,
                typed: PERCENT,
                oninput: (value) => {
                    stage.backdropOpacity = value;
                    stage.update();
                },
            });
            this.backdropSlider.set(stage.backdropOpacity);
            const follow = checkbox("Follow", "Show each new image behind the masks as it comes", (on) =>
                this.follow(on),
            );
            this.followBox = follow.input;
            return element(
                "div",
                {className: "mn-group", role: "group", "aria-label": "Backdrop"},
                textButton("Last image", "Show the last generated image behind the masks", () => this.useLastImage()),
                follow.node,
                textButton("Open backdrop", "Show any picture behind the masks; also by Shift and drop", () =>
                    this.pick((file) => this.setBackdropFile(file)),
                ),
                textButton("No backdrop", "Remove the picture behind the masks", () => this.noBackdrop()),
                this.backdropSlider.node,
            );
        }

        /** What went wrong, in the host's error colour. */
        fail(text) {
            this.say(text, true);
        }

        say(text, wrong = false) {
            this.status.textContent = text;
            this.status.classList.toggle("mn-wrong", wrong);
            clearTimeout(this.saying);
            this.saying = setTimeout(() => (this.status.textContent = ""), 8000);
        }

        update(what) {
            if (!this.list) return; // still being built
            if (what === "maps") return this.stage.update(true);
            if (what !== "tool") this.list.update();
            this.toolbar.update();
            this.shape.update();
            this.stage.update(true);
            for (const button of this.layerButtons) button.disabled = !this.editor.active;
        }

        setSize(width, height) {
            this.editor.setSize(width, height);
            this.canvas.parentElement.style.setProperty("--mn-aspect", `${width} / ${height}`);
            this.toolbar.update();
        }

        setTokens(tokens) {
            this.tokens = tokens;
            this.list.update();
        }

        // --- Pictures in and out

        pick(use) {
            const input = element("input", {
                type: "file",
                accept: ACCEPT,
                onchange: () => input.files[0] && use(input.files[0]),
            });
            input.click();
        }

        async importMask(file) {
            this.editor.ensureConcept();
            if (!this.editor.allowed()) return;
            try {
                const [data, smaller] = await this.maskData(file);
                this.editor.setPicture(data);
                this.say(`Mask imported${smaller ? ", made smaller to fit" : ""}.${await this.ofFrames(file, data)}`);
            } catch (error) {
                this.fail(`${file.name || "That"} cannot be a mask: ${error.message}.`);
            }
        }

        /** What becomes of a file's frames: of one that was converted the first is left. */
        async ofFrames(file, data) {
            const count = await frameCount(file);
            if (count === 1) return "";
            const converted = file.type !== "image/png" && data.startsWith("data:image/png");
            const kept = ` Its ${count} pictures are the mask at as many frames; here the first is shown.`;
            return converted || file.size > LARGEST_FILE ? " Of its frames the first is taken." : kept;
        }

        /** A picture's file as a data URL that a scene may hold, and whether it had to be made smaller. */
        async maskData(file) {
            const source = (await shown(file)) ? file : await this.converted(file);
            const kept = source.size <= LARGEST_FILE && KEPT.includes(source.type);
            if (kept) return [await dataUrl(source), false];
            const {data, smaller} = await pngOf(source);
            return [data, smaller];
        }

        /** A colour-coded picture as layers, one for each flat colour; white and black are left to the base. */
        async importColours(file) {
            const {BACKGROUNDS} = MaskNoise.colours;
            try {
                const [data] = await this.maskData(file);
                const {colours, shares} = await this.editor.pictures.unmixed(data);
                const most = this.editor.limits.concepts;
                const found = colours.map((colour, k) => ({colour, share: shares[k]}));
                const meant = found.filter(({colour}) => !BACKGROUNDS.includes(colour)).slice(0, most);
                if (!meant.length) throw new Error("it has no flat colours besides white and black");
                this.editor.arrange(meant.map(({colour}) => ({kind: "image", data, colour})));
                const listed = found.map(({colour, share}) => `${colour} ${Math.round(100 * share)} %`);
                this.say(`${meant.length} layers, the first for ${meant[0].colour}. In the picture: ${listed.join(", ")}.`);
            } catch (error) {
                this.fail(`${file.name || "That"} cannot be a colour map: ${error.message}.`);
            }
        }

        /** What the browser cannot show (TIFF, mostly), as the library reads it: a PNG. */
        async converted(file) {
            if (file.size > LARGEST_SENT) throw new Error("it is larger than 16 MB");
            const png = await this.convert((await dataUrl(file)).split(",")[1] ?? "");
            return (await fetch(png)).blob();
        }

        exportMask() {
            const layer = this.editor.active;
            const map = layer && this.editor.mapOf(layer);
            if (!map) return this.say(this.editor.refusal);
            const {width, height} = this.editor;
            const href = MaskNoise.pngOf(MaskNoise.raster.resize(map, width, height));
            const name = (layer.fields.prompt || "mask").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
            element("a", {href, download: `${name}.png`}).click();
        }

        /** Show the picture at an address, or none; of several asked for, the last. */
        async setBackdrop(url, fit = "fill") {
            this.wanted = url;
            const image = url ? Object.assign(new Image(), {src: url}) : null;
            try {
                await image?.decode();
                if (this.wanted !== url) return;
                Object.assign(this.stage, {backdrop: image, backdropFit: fit});
                this.stage.update();
            } catch {
                if (this.wanted === url) this.fail("That picture cannot be shown.");
            }
        }

        noBackdrop() {
            this.follow(false);
            this.setBackdrop(null);
        }

        /** Whether each new image becomes the backdrop (`lookForImage` is called now and then). */
        follow(on) {
            this.following = this.followBox.checked = on;
            this.onViewChange();
            this.lookForImage();
        }

        lookForImage() {
            const url = this.following ? this.lastImage() : null;
            if (url && url !== this.wanted) this.setBackdrop(url);
        }

        async setBackdropFile(file) {
            this.follow(false);
            const url = URL.createObjectURL(file);
            await this.setBackdrop(url);
            URL.revokeObjectURL(url); // what is decoded stays with its picture
        }

        useLastImage() {
            const url = this.lastImage();
            if (url) this.setBackdrop(url);
            else this.say("There is no generated image yet.");
        }

        // --- Keys, drop and paste

        listen() {
            this.root.addEventListener("keydown", (event) => this.key(event));
            this.canvas.addEventListener("keyup", (event) => event.code === "Space" && this.pan(false));
            this.canvas.addEventListener("blur", () => this.pan(false));
            this.root.addEventListener("dragover", (event) => event.preventDefault());
            this.root.addEventListener("drop", (event) => this.drop(event));
            this.onPaste = (event) => this.paste(event);
            document.addEventListener("paste", this.onPaste);
        }

        /** The page has taken the canvas away. */
        close() {
            document.removeEventListener("paste", this.onPaste);
        }

        pan(on) {
            this.stage.panning = on;
            this.canvas.classList.toggle("mn-panning", on);
            this.stage.update();
        }

        key(event) {
            const typing = event.target.matches("textarea, input[type=number], select");
            const command = event.ctrlKey || event.metaKey;
            if (typing || event.altKey) return;
            const action = command ? this.commandOf(event) : this.keyAction(event);
            if (!action) return;
            event.preventDefault();
            event.stopPropagation(); // hosts have shortcuts of their own
            action();
        }

        commandOf(event) {
            const key = event.key.toLowerCase();
            if (key === "z") return () => (event.shiftKey ? this.editor.redo() : this.editor.undo());
            if (key === "y") return () => this.editor.redo();
            return event.target === this.canvas ? this.shapeAction(event, regions.grown) : null;
        }

        keyAction(event) {
            const {editor} = this;
            const tool = TOOLS.find(([, , key]) => key.toLowerCase() === event.key.toLowerCase());
            if (tool) return () => editor.setTool({name: tool[0]});
            const resize = (factor) => () =>
                editor.setTool({size: MaskNoise.raster.clamp(editor.tool.size * factor, SIZES.low, SIZES.high)});
            const keys = {
                "[": resize(1 / 1.2),
                "]": resize(1.2),
                x: () => editor.setTool({erase: !editor.tool.erase}),
            };
            return keys[event.key] ?? (event.target === this.canvas ? this.canvasAction(event) : null);
        }

        /** Keys that mean something else on a button or a slider, and those that change what is painted. */
        canvasAction(event) {
            const {editor, stage} = this;
            const step = event.shiftKey ? STEPS.far : STEPS.near;
            const onShape = this.shapeAction(event, regions.moved);
            if (onShape) return onShape;
            const keys = {
                i: () => editor.invert(),
                Delete: () => editor.clear(),
                " ": () => this.pan(true),
                0: () => stage.fit(),
                "+": () => stage.zoomBy(1.25),
                "=": () => stage.zoomBy(1.25),
                "-": () => stage.zoomBy(0.8),
                ArrowLeft: () => stage.nudge(-step, 0),
                ArrowRight: () => stage.nudge(step, 0),
                ArrowUp: () => stage.nudge(0, -step),
                ArrowDown: () => stage.nudge(0, step),
                Enter: () => stage.dab(event.shiftKey),
            };
            return keys[event.key];
        }

        /** Keys of the move tool: arrows `change` the held shape, Enter takes the next one. */
        shapeAction(event, change) {
            const {editor} = this;
            if (editor.tool.name !== "move") return null;
            const step = event.shiftKey ? STEPS.far : STEPS.near;
            const ways = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
            const way = ways[event.key];
            if (way) return () => editor.region && editor.changeRegion(change(editor.region.mask, ...way), "arrows");
            const keys = {
                Enter: () => editor.pickNext(),
                Escape: () => editor.pick(),
                Delete: () => editor.removeRegion(),
            };
            return keys[event.key] ?? null;
        }

        drop(event) {
            const file = [...event.dataTransfer.files].find((one) => one.type.startsWith("image/"));
            if (!file) return;
            event.preventDefault();
            event.stopPropagation(); // the WebUI would read its generation data
            if (event.shiftKey) this.setBackdropFile(file);
            else this.importMask(file);
        }

        /** A picture pasted while the canvas or a tool has the focus is a mask; text goes where it always does. */
        paste(event) {
            if (!this.root.contains(document.activeElement)) return;
            const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
            if (!file) return;
            event.preventDefault();
            event.stopPropagation();
            this.importMask(file);
        }
    }

    const dataUrl = (file) =>
        new Promise((resolve, reject) => {
            const reader = new FileReader();
            reader.onload = () => resolve(reader.result);
            reader.onerror = reject;
            reader.readAsDataURL(file);
        });

    /** Whether the browser can show a file as a picture. */
    const shown = (file) =>
        createImageBitmap(file).then(
            (bitmap) => (bitmap.close(), true),
            () => false,
        );

    /** A picture as a PNG of at most LARGEST_SIDE pixels, the first frame of an animated one. */
    async function pngOf(file) {
        const bitmap = await createImageBitmap(file);
        const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
        const canvas = element("canvas", {
            width: Math.max(1, Math.round(bitmap.width * scale)),
            height: Math.max(1, Math.round(bitmap.height * scale)),
        });
        canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
        return {data: canvas.toDataURL("image/png"), smaller: scale < 1};
    }

    /** How many frames a picture has, 1 where the browser does not tell. */
    async function frameCount(file) {
        try {
            const {tracks} = new ImageDecoder({data: file.stream(), type: file.type});
            await tracks.ready;
            return tracks.selectedTrack.frameCount;
        } catch {
            return 1;
        }
    }

    Object.assign(MaskNoise, {Panel});
})();
