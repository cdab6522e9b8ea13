// What htmx does not do: a file dropped on the form, and a word while it is analysed.
"use strict";

for (const form of document.querySelectorAll("[data-drop]")) {
  const input = form.querySelector("input[type=file]");

  form.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (event.dataTransfer.files.length === 1) {
      input.files = event.dataTransfer.files;
    }
  });

  form.addEventListener("submit", () => {
    form.querySelector(".busy").hidden = false;
    form.querySelector("button").disabled = true;
  });
}

// A button or a menu in use must not vanish under the hand when the page renews itself.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "live" && event.target.querySelector(":focus")) {
    event.preventDefault();
  }
});
