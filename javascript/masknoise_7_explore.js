// A scene from one of the views of *Explore*, which are pages of their own inside this one.
"use strict";

(() => {
    /** Put text where a person would have typed it. */
    const type = (field, text) => {
        if (!field) return;
        field.value = text;
        field.dispatchEvent(new Event("input", {bubbles: true}));
    };

    /** Called by a view: the scene as JSON text, and the prompt of the image that it is made for. */
    window.masknoiseTakeScene = (text, prompt) => {
        type(document.querySelector("[id$='masknoise_json_text'] textarea"), text);
        type(document.querySelector("#txt2img_prompt textarea"), prompt);
        setTimeout(() => document.querySelector("[id$='masknoise_json_apply']").click(), 50);
    };
})();
