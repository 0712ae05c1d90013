// Films that play together: one button, one slider, one picture a step.
// A group is an element with data-players="NUMBER OF FRAMES"; it holds the films, a button
// with data-play, a range with data-scrub, and any number of buttons with data-frame.
"use strict";

function startPlayers(group) {
  const films = [...group.querySelectorAll("video")];
  const button = group.querySelector("[data-play]");
  const slider = group.querySelector("[data-scrub]");
  const label = group.querySelector("[data-frame-label]");
  const frames = Number(group.dataset.players);
  if (!films.length || !button || !slider) return;
  const leader = films[0];
  let playing = false;

  const lasts = (film) => (Number.isFinite(film.duration) ? film.duration : 0);
  const show = (frame) => {
    slider.value = String(frame);
    slider.setAttribute("aria-valuetext", `frame ${frame} of ${frames - 1}`);
    if (label) label.textContent = `frame ${frame}`;
    group.querySelectorAll("[data-frame]").forEach((mark) => {
      const inside = frame >= Number(mark.dataset.frame) && frame < Number(mark.dataset.frameEnd);
      mark.toggleAttribute("data-current", inside);
    });
  };
  // The middle of a frame's time: at its very beginning, rounding shows the one before.
  const seek = (frame) => films.forEach((film) => {
    film.currentTime = (lasts(film) * (frame + 0.5)) / frames;
  });
  const setPlaying = (wanted) => {
    playing = wanted;
    button.textContent = playing ? "Pause" : "Play";
    films.forEach((film) => (playing ? film.play().catch(() => {}) : film.pause()));
    if (playing) requestAnimationFrame(tick);
  };
  const tick = () => {
    if (!playing || !group.isConnected) return;
    if (lasts(leader)) {
      const part = leader.currentTime / lasts(leader);
      show(Math.min(frames - 1, Math.floor(part * frames)));
      films.slice(1).forEach((film) => {
        if (Math.abs(film.currentTime - part * lasts(film)) > 0.1) {
          film.currentTime = part * lasts(film);
        }
      });
    }
    requestAnimationFrame(tick);
  };
  films.forEach((film) => { film.muted = true; film.loop = true; });
  button.addEventListener("click", () => setPlaying(!playing));
  slider.addEventListener("input", () => {
    setPlaying(false);
    show(Number(slider.value));
    seek(Number(slider.value));
  });
  group.querySelectorAll("button[data-frame]").forEach((mark) => {
    mark.addEventListener("click", () => {
      setPlaying(false);
      show(Number(mark.dataset.frame));
      seek(Number(mark.dataset.frame));
    });
  });
  show(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);
}

document.querySelectorAll("[data-players]").forEach(startPlayers);
