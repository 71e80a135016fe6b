"""Colours of pictures, which stay apart for the colour-blind (Okabe and Ito 2008)."""

BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
