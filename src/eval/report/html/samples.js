'use strict';
// The browser of samples. Every text out of the data reaches the page as text (`textContent`), never as markup.
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const { sides, tasks, samples } = data;
  const hasTwo = sides.length === 2;
  const PAGE = 50;
  const MOST_NAMES = 500;
  const GRADES = { right: '✓ right', wrong: '✗ wrong', partly: '◐ partly', error: '! error', unscored: '– unscored' };
  const KINDS = { right: 'good', wrong: 'bad', partly: 'unsure', error: 'bad', unscored: 'plain' };
  const CHANGES = { lost: '↓ lost', gained: '↑ gained', differs: '≠ other answer', same: '= same' };
  const CHANGE_KINDS = { lost: 'bad', gained: 'good', differs: 'unsure', same: 'plain' };
  const ORDERS = { file: 'as in the suite', sure: 'most confident first', unsure: 'least confident first' };

  const byId = (id) => document.getElementById(id);
  const form = byId('filters');
  const field = (name) => form.elements.namedItem(name);
  const FIELDS = ['text', 'suite', 'task', 'grade', 'change', 'cluster', 'order'].filter((name) => field(name));
  // set by links alone: the JSON of a target and of an answer
  const cell = { target: '', answer: '' };
  let found = [];
  let first = 0;

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    for (const child of children) {
      made.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return made;
  }

  const number = (value) => value.toLocaleString('en-US');
  const percent = (share) => `${(100 * share).toFixed(2)} %`;
  const shown = (value) => (typeof value === 'string' ? value : JSON.stringify(value, null, 1));
  const candidate = (sample) => sample.s[sample.s.length - 1];
  const nameOf = (sample) => sample.i ?? `line ${sample.l}`;

  function options(name, entries, all) {
    const select = field(name);
    if (!select) return;
    select.replaceChildren();
    if (all) select.append(new Option(all, ''));
    for (const [value, text] of entries) select.append(new Option(text, value));
  }

  function taskOptions() {
    const suite = field('suite').value;
    const old = field('task').value;
    const kept = tasks.filter((task) => !suite || task.suite === suite);
    options('task', kept.map((task) => [task.name, task.name]), 'all');
    if (kept.some((task) => task.name === old)) field('task').value = old;
  }

  function clusterNames() {
    const task = field('task').value;
    const names = new Set();
    for (const sample of samples) {
      if (sample.c !== undefined && (!task || tasks[sample.t].name === task)) names.add(sample.c);
      if (names.size >= MOST_NAMES) break;
    }
    byId('cluster-names').replaceChildren(...[...names].map((name) => new Option(name, name)));
  }

  // what the search looks at, made once per sample
  const texts = new Map();
  function searched(sample) {
    let text = texts.get(sample);
    if (text === undefined) {
      const parts = [sample.q, sample.i, sample.c, sample.o, sample.y];
      for (const side of sample.s) if (side) parts.push(side.p, side.x, side.e);
      const known = parts.filter((part) => part !== undefined && part !== null);
      text = known.map(shown).join('\n').toLowerCase();
      texts.set(sample, text);
    }
    return text;
  }

  function matches(sample, wanted) {
    const task = tasks[sample.t];
    const side = candidate(sample);
    return (!wanted.suite || task.suite === wanted.suite)
      && (!wanted.task || task.name === wanted.task)
      && (!wanted.grade || side.g === wanted.grade || (wanted.grade === 'not_right' && ['wrong', 'partly', 'error'].includes(side.g)))
      && (!wanted.change || sample.k === wanted.change || (wanted.change === 'changed' && ['lost', 'gained', 'differs'].includes(sample.k)))
      && (!wanted.cluster || (sample.c ?? '').toLowerCase().includes(wanted.cluster))
      && (!cell.target || JSON.stringify(sample.y ?? null) === cell.target)
      && (!cell.answer || JSON.stringify(side.p ?? null) === cell.answer)
      && wanted.words.every((word) => searched(sample).includes(word));
  }

  function apply() {
    const wanted = Object.fromEntries(FIELDS.map((name) => [name, field(name).value]));
    wanted.cluster = wanted.cluster.trim().toLowerCase();
    wanted.words = wanted.text.toLowerCase().split(/\s+/).filter((word) => word);
    found = samples.filter((sample) => matches(sample, wanted));
    if (wanted.order !== 'file') {
      const sign = wanted.order === 'sure' ? -1 : 1;
      const rank = (sample) => candidate(sample).f ?? Infinity * sign;
      found.sort((a, b) => {
        const [x, y] = [rank(a), rank(b)];
        return x === y ? 0 : sign * (x - y);
      });
    }
    first = 0;
    chips();
    show();
  }

  function chips() {
    const made = [];
    for (const [key, text] of [['target', 'right'], ['answer', 'answered']]) {
      if (!cell[key]) continue;
      const button = element('button', '', `${text}: ${cell[key]} ×`);
      button.type = 'button';
      button.setAttribute('aria-label', `Remove the filter ${text}: ${cell[key]}`);
      button.addEventListener('click', () => {
        cell[key] = '';
        changed();
        field('text').focus();
      });
      made.push(button);
    }
    byId('chips').replaceChildren(...made);
  }

  function show() {
    const page = found.slice(first, first + PAGE);
    byId('count').textContent = `${number(found.length)} of ${number(samples.length)} samples`;
    byId('range').textContent = found.length ? `${number(first + 1)} to ${number(first + page.length)}` : 'none';
    for (const id of ['previous', 'previous-below']) byId(id).disabled = first === 0;
    for (const id of ['next', 'next-below']) byId(id).disabled = first + PAGE >= found.length;
    byId('open-all').disabled = page.length === 0;
    byId('list').replaceChildren(...page.map(row));
  }

  function turn(by) {
    first = Math.min(Math.max(first + by * PAGE, 0), Math.max(found.length - 1, 0));
    show();
    byId('samples-heading').focus();
    byId('samples').scrollIntoView();
  }

  function row(sample) {
    const side = candidate(sample);
    const summary = element('summary', '', element('span', `grade ${KINDS[side.g]}`, GRADES[side.g]));
    if (sample.k) summary.append(element('span', `change ${CHANGE_KINDS[sample.k]}`, CHANGES[sample.k]));
    summary.append(element('span', 'name', `${tasks[sample.t].name} · ${nameOf(sample)}`));
    const start = (sample.q ?? side.e ?? '').replace(/\s+/g, ' ').trim();
    summary.append(element('span', 'start', start.slice(0, 240)));
    const details = element('details', '', summary);
    details.addEventListener('toggle', () => {
      if (details.open && details.childElementCount === 1) details.append(opened(sample));
    });
    return element('li', '', details);
  }

  function opened(sample) {
    const box = element('div', 'sample');
    const place = [tasks[sample.t].name, nameOf(sample), `document ${sample.d}`, `line ${sample.l}`];
    const line = element('p', 'muted', place.join(' · '));
    if (sample.c !== undefined) {
      const button = element('button', '', `cluster ${sample.c}`);
      button.type = 'button';
      button.addEventListener('click', () => {
        field('cluster').value = sample.c;
        changed();
        field('cluster').focus();
      });
      line.append(' ', button);
    }
    box.append(line);
    if (sample.q !== undefined) box.append(element('h4', '', 'Question'), element('pre', '', sample.q));
    if (sample.o) box.append(choices(sample));
    else if (sample.y !== undefined) box.append(element('h4', '', 'Expected'), element('pre', '', shown(sample.y)));
    const both = element('div', 'pair');
    sample.s.forEach((side, index) => {
      both.append(face(sample, side, index));
    });
    box.append(both);
    return box;
  }

  function choices(sample) {
    const head = element('tr', '', element('th', '', 'choice'), element('th', '', 'right'));
    const columns = sample.s.map((side, index) => ({ side, index })).filter(({ side }) => side && side.r);
    for (const { index } of columns) head.append(element('th', '', hasTwo ? ['baseline', 'candidate'][index] : 'probability'));
    const body = element('tbody');
    const isRight = (place) => sample.y === place || sample.y === sample.o[place];
    sample.o.forEach((text, place) => {
      const line = element('tr', '', element('td', 'text', text), element('td', '', isRight(place) ? '✓ right' : ''));
      for (const { side, index } of columns) {
        const share = side.r[place] ?? 0;
        const fill = element('i');
        fill.style.width = `${100 * share}%`;
        const isChosen = side.p === place || side.p === text;
        const label = `${percent(share)}${isChosen ? ' ← chosen' : ''}`;
        const column = element('td', hasTwo ? `side${index}` : 'side1', isChosen ? element('b', '', label) : label);
      if (hasTwo) column.prepend(element('span', 'who', `${['baseline', 'candidate'][index]} `));
        column.append(element('span', 'share', fill));
        line.append(column);
      }
      body.append(line);
    });
    for (const heading of head.children) heading.scope = 'col';
    return element('table', '', element('thead', '', head), body);
  }

  function face(sample, side, index) {
    const box = element('div', `side${index}`);
    if (hasTwo) box.append(element('h4', '', element('b', '', ['Baseline', 'Candidate'][index]), ` ${sides[index]}`));
    if (!side) {
      box.append(element('p', '', 'This document was not asked.'));
      return box;
    }
    const other = hasTwo ? sample.s[1 - index] : null;
    box.append(element('p', KINDS[side.g], GRADES[side.g]));
    if (side.u) box.append(element('p', 'unsure', 'The prompt was longer than the context and lost its beginning.'));
    if (side.e !== undefined) box.append(element('h4', '', 'Could not be asked'), element('pre', '', side.e));
    if (side.x !== undefined) {
      const text = element('pre', '');
      if (other && typeof other.x === 'string' && other.x !== side.x) text.append(...marked(side.x, other.x));
      else text.textContent = side.x === '' ? '(nothing)' : side.x;
      box.append(element('h4', '', 'Wrote'), text);
    }
    if (side.p !== undefined && !sample.o) {
      box.append(element('h4', '', 'Taken as the answer'), element('pre', '', shown(side.p)));
    }
    const scores = Object.entries(side.n).map(([name, score]) => `${name} ${Number.isInteger(score) ? score : score.toFixed(4)}`);
    box.append(element('h4', '', 'Scores'), element('p', '', scores.join(' · ')));
    if (side.m) {
      const more = Object.entries(side.m).map(([name, value]) => `${name}: ${typeof value === 'string' ? value : JSON.stringify(value)}`);
      box.append(element('p', 'muted', more.join(' · ')));
    }
    return box;
  }

  // The text, with what is between the words that both begin and end with marked.
  function marked(text, other) {
    const [words, others] = [text, other].map((value) => value.split(/(\s+)/));
    const least = Math.min(words.length, others.length);
    let begin = 0;
    while (begin < least && words[begin] === others[begin]) begin += 1;
    let end = 0;
    while (end < least - begin && words[words.length - 1 - end] === others[others.length - 1 - end]) end += 1;
    const middle = words.slice(begin, words.length - end).join('');
    return [
      document.createTextNode(words.slice(0, begin).join('')),
      element('mark', '', middle),
      document.createTextNode(words.slice(words.length - end).join('')),
    ];
  }

  // The filters as an address, so that a view can be kept.
  function address() {
    const set = new URLSearchParams();
    for (const name of FIELDS) {
      const value = field(name).value;
      if (value && !(name === 'order' && value === 'file')) set.set(name, value);
    }
    for (const key of ['target', 'answer']) if (cell[key]) set.set(key, cell[key]);
    return set.toString() ? `#filter:${set}` : '#samples';
  }

  function changed() {
    apply();
    try {
      history.replaceState(null, '', address());
    } catch {
      // a page in a sandboxed frame has no history of its own
    }
  }

  function fromAddress() {
    if (!location.hash.startsWith('#filter:')) return;
    const set = new URLSearchParams(location.hash.slice('#filter:'.length));
    field('suite').value = set.get('suite') ?? '';
    taskOptions();
    for (const name of FIELDS) {
      if (name !== 'suite') field(name).value = set.get(name) ?? (name === 'order' ? 'file' : '');
    }
    for (const key of ['target', 'answer']) cell[key] = set.get(key) ?? '';
    clusterNames();
    apply();
    byId('samples-heading').focus();
    byId('samples').scrollIntoView();
  }

  function begin() {
    const has = (test) => samples.some(test);
    const suites = [...new Set(tasks.map((task) => task.suite))];
    options('suite', suites.map((name) => [name, name]), 'all');
    taskOptions();
    const grades = Object.entries(GRADES).filter(([grade]) => has((sample) => candidate(sample).g === grade));
    options('grade', [...grades, ['not_right', 'not right']], 'all');
    options('change', [...Object.entries(CHANGES), ['changed', 'any change']], 'all');
    const orders = Object.entries(ORDERS).filter(([order]) => order === 'file' || has((sample) => candidate(sample).f !== undefined));
    options('order', orders, '');
    clusterNames();
    let timer = 0;
    form.addEventListener('input', (event) => {
      clearTimeout(timer);
      if (event.target === field('suite')) taskOptions();
      if (event.target === field('suite') || event.target === field('task')) clusterNames();
      timer = setTimeout(changed, event.target.type === 'search' ? 150 : 0);
    });
    form.addEventListener('submit', (event) => event.preventDefault());
    form.addEventListener('reset', () => {
      cell.target = '';
      cell.answer = '';
      setTimeout(() => {
        taskOptions();
        clusterNames();
        changed();
      }, 0);
    });
    for (const id of ['previous', 'previous-below']) byId(id).addEventListener('click', () => turn(-1));
    for (const id of ['next', 'next-below']) byId(id).addEventListener('click', () => turn(1));
    byId('open-all').addEventListener('click', () => {
      for (const details of byId('list').querySelectorAll('details')) details.open = true;
    });
    window.addEventListener('hashchange', fromAddress);
    byId('unscripted').remove();
    byId('browser').hidden = false;
    apply();
    fromAddress();
  }

  begin();
})();
