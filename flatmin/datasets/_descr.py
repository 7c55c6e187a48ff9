"""Descriptions of the data sets."""

CIFAR10 = """\
.. _cifar10_dataset:

CIFAR-10
--------

Colour photographs of animals and vehicles, of 32 x 32 pixels: 50,000 training and
10,000 test images in ten balanced classes, a labelled subset of the Tiny Images.

==================  ==============================================
Classes                                                         10
Samples total                                               60,000
Dimensionality                                         3 x 32 x 32
Features            integers from 0 to 255, divided by 255 to load
==================  ==============================================

The classes are, from 0 to 9: airplane, automobile, bird, cat, deer, dog, frog, horse,
ship, truck.

The data set was collected by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton. Copies of
it differ: the attribute `origin` says which one was loaded.

.. rubric:: References

- Krizhevsky (2009). "Learning Multiple Layers of Features from Tiny Images".
  https://www.cs.toronto.edu/~kriz/cifar.html
"""

FASHION_MNIST = """\
.. _fashion_mnist_dataset:

Fashion-MNIST
-------------

Photographs of articles of Zalando, in grey levels, of 28 x 28 pixels: 60,000 training
and 10,000 test images in ten balanced classes.

==================  ==============================================
Classes                                                         10
Samples total                                               70,000
Dimensionality                                             28 x 28
Features            integers from 0 to 255, divided by 255 to load
==================  ==============================================

The classes are, from 0 to 9: T-shirt/top, trouser, pullover, dress, coat, sandal,
shirt, sneaker, bag, ankle boot.

The data set is by Zalando SE, under the MIT licence.

.. rubric:: References

- Xiao, Rasul and Vollgraf (2017). "Fashion-MNIST: a Novel Image Dataset for
  Benchmarking Machine Learning Algorithms". doi:10.48550/arXiv.1708.07747
"""

NOISY_FASHION_MNIST = """\
.. _noisy_fashion_mnist_dataset:

Fashion-MNIST with wrong labels
-------------------------------

A random subset of the training images of Fashion-MNIST, some of whose labels are
replaced by random ones, and the 10,000 test images with their right labels. With the
default sizes, 1000 right and 200 wrong labels, it is the data set of section 5.1 and
appendix C of Zhu et al. (2018): networks that fit all of it, wrong labels included,
differ in how well they generalise.

.. rubric:: References

- Xiao, Rasul and Vollgraf (2017). "Fashion-MNIST: a Novel Image Dataset for
  Benchmarking Machine Learning Algorithms". doi:10.48550/arXiv.1708.07747
- Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of Anisotropic Noise in
  Stochastic Gradient Descent". doi:10.48550/arXiv.1803.00195
"""
