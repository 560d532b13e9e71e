/*
 * What the page's other parts lack: help that is shown on demand, and an accordion that opens when its box is ticked.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

    const HELP = '[data-testid="block-info"] + div, :scope > div:not(.wrap):has(+ label)'; // gradio 3 and 4

    /** "What these do" shows the help of all controls of its part, and hides it again. */
    function toggleHelp(event) {
        const button = event.target.closest?.(".masknoise-help");
        if (!button) return;
        const shown = button.closest(".masknoise-part").classList.toggle("masknoise-explained");
        button.setAttribute("aria-pressed", String(shown));
    }

    /** A control under the pointer has its help as a tooltip. */
    function addTooltip(event) {
        const control = event.target.closest?.(".masknoise-control");
        if (!control || control.title) return;
        control.title = control.querySelector(HELP)?.textContent.trim() ?? "";
    }

    /** A WebUI's accordion that has its switch in its head: ticked, it opens. (A click on the box alone does not, there.) */
    function openWhenTicked(accordion) {
        const head = accordion?.querySelector(".label-wrap");
        accordion?.addEventListener("input", ({target}) => {
            if (target.matches(".input-accordion-checkbox") && target.checked && !head.classList.contains("open"))
                head.click();
        });
    }

    const INFOTEXTS = "#html_info_txt2img, #html_info_img2img, #html_info_extras, #tab_pnginfo";
    const MASKS = /(MaskNoise masks: )([\w=-]{200,})/;

    /** In an infotext that the page shows, the masks are folded: they are as long as everything painted. */
    function foldMasks(root) {
        for (const shown of root.querySelectorAll(INFOTEXTS)) {
            if (shown.querySelector(".mn-folded")) continue;
            const texts = document.createTreeWalker(shown, NodeFilter.SHOW_TEXT);
            while (texts.nextNode()) {
                const text = texts.currentNode;
                const found = MASKS.exec(text.data);
                if (!found) continue;
                const masks = text.splitText(found.index + found[1].length);
                masks.splitText(found[2].length);
                const words = `${found[2].length.toLocaleString("en")} characters`;
                const box = document.createElement("details");
                box.className = "mn-folded";
                box.append(Object.assign(document.createElement("summary"), {textContent: words}));
                masks.replaceWith(box);
                box.append(masks);
                return foldMasks(root);
            }
        }
    }

    MaskNoise.page = {
        foldMasks,
        openWhenTicked,
        listen(root) {
            root.addEventListener("click", toggleHelp);
            root.addEventListener("pointerover", addTooltip);
        },
    };
})();
