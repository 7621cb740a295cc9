// Draws the page's figures, and lets their curves be shown and hidden. Names are only ever set as text.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const divs = [...document.querySelectorAll("[data-figure]")];

  // Never rounded up.
  const percent = (count, images) => (Math.floor((1000 * count) / images) / 10).toFixed(1) + " %";
  const radius = (value) => (Math.floor(value * 1e6) / 1e6).toString();
  // Plotly takes some markup in text.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  for (const figure of figures) {
    for (const trace of figure.data) {
      const meta = trace.meta;
      if (meta && meta.counted) {
        trace.text = trace.x.map((x, at) => {
          const count = trace.customdata[at];
          return `${meta.title.map(escaped).join("<br>")}<br>${percent(count, meta.images)}: ${count} ${meta.counted} ${radius(x)}`;
        });
        trace.hoverinfo = "text";
      }
    }
  }

  const chosen = (name) => [...document.querySelectorAll(`[data-choose="${name}"]`)];

  // A trace is shown where its own box is ticked, and what is chosen anywhere does not speak against it.
  const visible = (figure, trace, place) => {
    const meta = trace.meta || {};
    const box = document.querySelector(`input[data-trace~="${figure}:${place}"]`);
    const group = meta.run === undefined ? null : document.querySelector(`input[data-run="${figure}:${meta.run}"]`);
    const [protocol] = chosen("protocol");
    const line = document.querySelector(`select[data-line="${figure}"]`);
    return (
      (!box || box.checked) &&
      (!group || group.checked) &&
      (!protocol || !protocol.value || !meta.protocol || meta.protocol === protocol.value) &&
      (!line || line.value === meta.line)
    );
  };

  const refresh = () =>
    Promise.all(
      divs.map((div) => {
        const number = Number(div.dataset.figure);
        const traces = figures[number].data;
        const shown = traces.map((trace, place) => visible(number, trace, place));
        traces.forEach((_, place) => {
          const box = document.querySelector(`input[data-trace~="${number}:${place}"]`);
          if (box) box.closest("label").classList.toggle("hidden-curve", !shown[place]);
        });
        return Plotly.restyle(div, { visible: shown }, traces.map((_, place) => place));
      }),
    );

  const config = {
    responsive: true,
    displaylogo: false,
    scrollZoom: false,
    // Nothing of a run is for anybody's cloud.
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };
  // A hidden figure has no width.
  document.documentElement.classList.add("drawn");
  const drawn = divs.map((div) => {
    const figure = figures[Number(div.dataset.figure)];
    return Plotly.newPlot(div, figure.data, figure.layout, config);
  });
  Promise.all(drawn).then(refresh).then(() => document.documentElement.classList.add("ready"));

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-run], [data-trace], [data-line], [data-choose]")) refresh();
  });

  // Paper has no window to resize, and nothing on it can be unfolded.
  const folded = [];
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      folded.push(details);
    }
    for (const div of divs) Plotly.relayout(div, { width: 660 });
  });
  addEventListener("afterprint", () => {
    for (const details of folded.splice(0)) details.open = false;
    for (const div of divs) Plotly.relayout(div, { width: null, autosize: true });
  });
})();
