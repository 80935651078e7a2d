/* Reads freed memory: if Valgrind does not say so, its other verdicts mean nothing. */

#include <stdio.h>
#include <stdlib.h>

int main(void) {
    volatile char *memory = (volatile char *)malloc(16);
    if (memory == NULL) {
        return 0;
    }
    memory[3] = 'x';
    free((void *)memory);
    printf("%d\n", memory[3]);
    return 0;
}
