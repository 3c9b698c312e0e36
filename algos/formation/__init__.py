"""What FoX is made of: formations and their counts, the network that predicts them, the bonus for being aware of them."""
