"""What a report says of each of its figures."""

# Each figure's section heading, alternative text and caption.
FIGURES = {
  "baselines": (
    "",
    "Chart of each row's report loss minus that of the last checkpoint, with"
    " bars of two standard errors; the table above has the numbers.",
    "Difference in report loss to the last checkpoint, with two paired"
    " standard errors. Left of the line is better; an arrow stands for a value"
    " off the scale.",
  ),
  "training_curve": (
    "Training curve",
    "Training loss and the checkpoints' held-out loss against training tokens,"
    " with the merged model as a star.",
    "Above, the whole run; below, the neighbourhood of the merge. The merged"
    " model stands at the tokens of its last checkpoint, and an arrow, if"
    " any, leads to where the run itself reaches its loss. Training loss is of"
    " training text, so it may lie on either side of the held-out loss.",
  ),
  "posterior": (
    "What the search believes",
    "Posterior mean and 95% band of the search loss against the weight of the"
    " later checkpoint, with every trial, its number, and the acquisition that"
    " asked for it; the list of trials below has the numbers.",
    "The Gaussian process after the last trial, with each trial's loss (bars:"
    " two paired standard errors) and number; the shape of a marker says which"
    " acquisition asked.",
  ),
  "ternary": (
    "What the search believes",
    "Two triangles of weights of the three checkpoints: contours of the"
    " expected search loss, with every trial and the acquisition that asked"
    " for it, and contours of the standard deviation; the list of trials below"
    " has the numbers.",
    "The Gaussian process after the last trial. A corner is one checkpoint"
    " alone at its largest weight, the opposite edge is without it. Left, the"
    " darker the lower the expected loss; right, the darker the less the"
    " search knows. White, or the darkest grey, may stand for values off the"
    " scale.",
  ),
  "slices": (
    "One weight at a time",
    "Posterior mean and 95% band of the search loss against the weight of one"
    " checkpoint, one chart each, with the chosen weight marked.",
    "The Gaussian process along the line from the chosen weights towards each"
    " checkpoint: its weight changes, the others keep their proportions. A"
    " narrow band is knowledge, a wide one a guess; a lowest point far from"
    " the ring, in a wide band, is a reason for more trials. Of more than"
    " eight checkpoints the heaviest eight are shown.",
  ),
  "convergence": (
    "Progress of the search",
    "Lowest search loss so far against evaluations, with the baselines as"
    " horizontal lines.",
    "Lowest search loss after each evaluation. Dashed lines: the baselines on"
    " the same split. At the top, without a place on the axis: carets are"
    " trials above it, crosses failed ones, rings those stopped early.",
  ),
  "hedge": (
    "Who asked",
    "Stacked probabilities of the acquisitions at each trial, with a marker on"
    " the one that was followed.",
    "GP-Hedge keeps a portfolio of acquisitions and follows one at a time,"
    " drawn with these probabilities; they grow for those whose nominees turn"
    " out to be good. The marker says which was followed; above the bars, a"
    " point that none had nominated, because theirs were asked before.",
  ),
  "calibration": (
    "How well it predicted",
    "Predicted against measured search loss of each trial, and the difference"
    " in standard deviations by trial number, with a band of two.",
    "What the Gaussian process predicted for each trial before it was scored."
    " Left, a perfect prediction lies on the line; right, about 19 of 20"
    " should lie in the band. Many outside: the process is too sure of"
    " itself; all near zero: it is too timid.",
  ),
}
